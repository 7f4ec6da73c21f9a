"""Times an engine on TensorRT (10, 11) or TensorRT-RTX, with torch's CUDA events, graphs and streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from nm2trt.artifacts import RunnerRecord
from nm2trt.errors import ConfigError, MachineError
from nm2trt.profile.runners.runner import LayerTimes
from nm2trt.profile.runners.tensorrt_engine import Engine, EngineContext, input_shapes

_POOL = 32
"""Streams of one priority in torch's pool: the next one is the first again (c10/cuda/CUDAStream.cpp)."""
_CYCLES_PER_MS = 2_000_000
"""Of a GPU at 2 GHz, the fastest that there is; a slower one only waits longer."""
_LEAST_DELAY_MS = 0.02
_MOST_DELAY_MS = 20.0
_NOTE = (
    "TensorRT has 2:4 kernels and its builder chooses between them and dense ones layer by layer; the flag alone says "
    "nothing."
)


class TensorrtRunner:
    """One engine, timed on the device.

    Args:
        engine: Loaded through its manifest.
        seed: Of the input values.
        shapes: Whole shapes of inputs with dynamic dimensions besides the batch.
    """

    def __init__(self, engine: Engine, *, seed: int = 0, shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self._engine: Engine | None = engine
        self._seed = seed
        self._given = dict(shapes or {})
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._main: EngineContext | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._marks = [_event() for _ in range(2)]
        self._host: dict[str, torch.Tensor] = {}
        self._enqueue_ms = 0.0

    @property
    def record(self) -> RunnerRecord:
        """Backend, version, GPU and settings."""
        engine = self._loaded()
        graph = "on" if self.has_graph else "off: not every engine's stream could be captured"
        return RunnerRecord(
            backend=engine.flavor,
            version=str(engine.trt.__version__),
            provider=torch.cuda.get_device_name(),
            threads=None,
            settings={"CUDA graph": graph, "inputs": "normal draws on the device; integers 0 and 1"},
            clock="GPU compute between two CUDA events on the stream, inputs and outputs on the device; the GPU is "
            "kept busy before the first one until the host has launched everything",
            sparse_kernels=True,
            note=_NOTE,
        )

    def prepare(self, batch: int) -> None:
        """Make buffers for `batch` samples and capture the CUDA graph.

        Raises:
            InputError: The engine does not take this batch.
        """
        engine = self._loaded()
        self._shapes = input_shapes(engine.cuda_engine, engine.trt, batch, self._given, name=engine.name)
        self._graph = None
        self._main = main = EngineContext(engine, self._shapes, self._seed)
        with torch.cuda.stream(main.stream):
            main.enqueue()
        main.stream.synchronize()
        self._host = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            for name, tensor in (main.inputs | main.outputs).items()
        }
        for name, tensor in main.inputs.items():
            # The network's own inputs, and not what lay in that memory: token ids have a range.
            self._host[name].copy_(tensor)
        self._graph = _captured(main)
        self.run_once()

    @property
    def has_graph(self) -> bool:
        """Whether calls replay a CUDA graph."""
        return self._graph is not None

    def drop_graph(self) -> None:
        """Enqueue the engine anew in each call from now on, as the variants that could not be captured do."""
        self._graph = None

    def run_once(self) -> float:
        """Run between two events; milliseconds."""
        main = self._prepared()
        with torch.cuda.stream(main.stream):
            self._delay()
            self._marks[0].record()
            self._launch(main)
            self._marks[1].record()
        self._marks[1].synchronize()
        return float(self._marks[0].elapsed_time(self._marks[1]))

    def run_with_transfers(self) -> float | None:
        """The same with copies from and to pinned memory of the host."""
        main = self._prepared()
        with torch.cuda.stream(main.stream):
            self._delay()
            self._marks[0].record()
            for name, tensor in main.inputs.items():
                tensor.copy_(self._host[name], non_blocking=True)
            self._launch(main)
            for name, tensor in main.outputs.items():
                self._host[name].copy_(tensor, non_blocking=True)
            self._marks[1].record()
        self._marks[1].synchronize()
        return float(self._marks[0].elapsed_time(self._marks[1]))

    def enqueue_ms(self) -> float | None:
        """Host time of the last launch."""
        return self._enqueue_ms

    def memory_bytes(self) -> int | None:
        """Plan and working space: what the engine itself keeps on the device, inputs and outputs apart."""
        engine = self._loaded()
        # 10.0 has only the older name, which counts the same.
        working: Any = getattr(engine.cuda_engine, "device_memory_size_v2", None)
        if working is None:
            working = getattr(engine.cuda_engine, "device_memory_size", 0)
        return engine.plan_bytes + int(working)

    def layer_profiler(self) -> TensorrtLayers | None:
        """Open another context with TensorRT's profiler."""
        engine = self._loaded()
        return TensorrtLayers(engine, self._shapes, self._seed)

    def streams(self, count: int) -> list[Callable[[], None]]:
        """Give calls with a context, buffers and a stream each.

        Raises:
            ConfigError: More streams than torch can tell apart.
        """
        if count > _POOL:
            raise ConfigError(
                f"{count} streams, and torch has {_POOL}: some would wait for each other",
                where="--streams",
                hint=f"use at most {_POOL}",
            )
        engine = self._loaded()
        return [partial(_run_blocking, EngineContext(engine, self._shapes, self._seed)) for _ in range(count)]

    def close(self) -> None:
        """Drop context, buffers and engine."""
        self._graph = None
        self._main = None
        self._host = {}
        self._engine = None

    def _delay(self) -> None:
        """Keep the stream busy for as long as the host needs to launch what follows, so that the events hold no wait.

        Without it, the time between the events of a small network is the host's launch time, and every ratio is 1.
        """
        delay_ms = min(max(2 * self._enqueue_ms, _LEAST_DELAY_MS), _MOST_DELAY_MS)
        torch.cuda._sleep(int(delay_ms * _CYCLES_PER_MS))  # type: ignore[no-untyped-call] # noqa: SLF001

    def _launch(self, main: EngineContext) -> None:
        started = time.perf_counter()
        if self._graph is not None:
            self._graph.replay()
        else:
            main.enqueue()
        self._enqueue_ms = (time.perf_counter() - started) * 1000

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the runner was closed")
        return self._engine

    def _prepared(self) -> EngineContext:
        if self._main is None:
            raise RuntimeError("prepare() comes first")
        return self._main


class TensorrtLayers:
    """A context with TensorRT's profiler, which times every layer of every call."""

    def __init__(self, engine: Engine, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
        times: dict[str, list[float]] = {}

        base: Any = engine.trt.IProfiler

        class Collector(base):  # type: ignore[misc]
            def __init__(self) -> None:
                base.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.setdefault(layer_name, []).append(ms)

        self._times = times
        self._context: EngineContext | None = EngineContext(engine, shapes, seed, profiler=Collector())

    def run_once(self) -> None:
        """Execute once; the profiler reports when the stream is synchronized."""
        if self._context is not None:
            _run_blocking(self._context)

    def finish(self) -> list[LayerTimes]:
        """Drop the context and return what was reported."""
        self._context = None
        return [
            LayerTimes(name=name, type="", times_ms=tuple(values[1:] or values)) for name, values in self._times.items()
        ]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _captured(context: EngineContext) -> torch.cuda.CUDAGraph | None:
    """Capture one execution; None where the engine's stream cannot be captured.

    Not by `torch.cuda.graph`: where its end of capture raises, it leaves its stream the current one.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    try:
        with torch.cuda.stream(context.stream):
            graph.capture_begin()
            try:
                context.enqueue()
            finally:
                graph.capture_end()
    except (RuntimeError, MachineError):
        torch.cuda.synchronize()
        return None
    return graph


def _run_blocking(context: EngineContext) -> None:
    context.enqueue()
    context.stream.synchronize()
