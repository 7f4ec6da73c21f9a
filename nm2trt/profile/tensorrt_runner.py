"""Runs an engine on TensorRT (10, 11) or TensorRT-RTX: own device buffers, CUDA events, CUDA graph, streams.

Buffers, events, graphs and streams are torch's: it is installed with the CUDA libraries that fit it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nm2trt.artifacts import RunnerRecord, check_plan, this_platform
from nm2trt.artifacts.build import Arm
from nm2trt.errors import ConfigError, InputError, MachineError
from nm2trt.profile.runner import LayerTimes
from nm2trt.tensorrt_api import (
    Flavor,
    LogKeeper,
    explain_missing,
    keep_log,
    load_engine,
    load_tensorrt,
    make_runtime,
    require,
)
from nm2trt.tensorrt_api.types import ICudaEngine, IExecutionContext, Tensorrt

_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}
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


class Engine:
    """One deserialized plan. Loaded only after the manifest vouched for it; host code stays disallowed.

    Args:
        folder: Build folder.
        arm: Which of its engines.
        flavor: The library that built it.
        rebuild: Which repetition of the variant.
        trust: As `check_plan`.

    Raises:
        InputError: The plan is not the manifest's, does not fit this machine, or cannot be deserialized.
        MachineError: The library or the GPU is missing, or they do not fit each other.
    """

    def __init__(
        self, folder: Path, arm: Arm, *, flavor: Flavor = "tensorrt", rebuild: int = 0, trust: bool = False
    ) -> None:
        require_tensorrt(flavor)
        self.trt: Tensorrt = load_tensorrt(flavor)
        self.flavor = flavor
        major, minor = torch.cuda.get_device_capability()
        path = check_plan(
            folder,
            arm,
            tensorrt_version=self.trt.__version__,
            sm=f"{major}{minor}",
            platform=this_platform(),
            rebuild=rebuild,
            trust=trust,
            builder=flavor,
        )
        self.log: LogKeeper = keep_log(self.trt, "ERROR")
        self._runtime = make_runtime(self.trt, self.log)
        plan = path.read_bytes()
        self.plan_bytes = len(plan)
        self.name = f"{folder.resolve().name}/{path.name}"
        self.cuda_engine: ICudaEngine = load_engine(self._runtime, plan, self.log, where=path)


def require_tensorrt(flavor: Flavor) -> None:
    """Check that engines can run here.

    Raises:
        MachineError: The library or the GPU is missing; the line names all that is.
    """
    missing = explain_missing(flavor)
    if missing:
        raise MachineError(
            f"--backend {flavor}: {' and '.join(one.what for one in missing)}",
            mend=f"{', then '.join(one.hint for one in missing)}; or use --backend onnxruntime",
        )


class _Context:
    """An execution context with its buffers on a stream of its own."""

    def __init__(self, engine: Engine, shapes: Mapping[str, tuple[int, ...]], seed: int, profiler: Any = None) -> None:
        self.engine = engine
        trt, cuda = engine.trt, engine.cuda_engine
        self.context: IExecutionContext = require(
            cuda.create_execution_context(),
            "TensorRT made no execution context",
            engine.log,
            where=engine.name,
            hint="free memory on the GPU (nvidia-smi names who holds it), or use a smaller --batch",
        )
        # DETAILED plans mark every layer for Nsight, at a cost to each launch.
        self.context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
        if profiler is not None:
            self.context.profiler = profiler
        self.stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        generator = torch.Generator(device="cuda").manual_seed(seed)
        names = [cuda.get_tensor_name(index) for index in range(cuda.num_io_tensors)]
        self.inputs: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        for name in names:
            if cuda.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                self._take_shape(engine, name, shapes[name])
                self.inputs[name] = _draw(shapes[name], _dtype(engine, name), generator)
        for name in names:
            if name not in self.inputs:
                shape = tuple(self.context.get_tensor_shape(name))
                self.outputs[name] = _allocate(engine, name, shape)
        for name, tensor in (self.inputs | self.outputs).items():
            if not self.context.set_tensor_address(name, tensor.data_ptr()):
                raise MachineError(f"TensorRT refused the buffer of {name!r}{engine.log.because()}", where=engine.name)
        torch.cuda.synchronize()

    def enqueue(self) -> None:
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise MachineError(
                f"TensorRT could not enqueue the engine{self.engine.log.because()}", where=self.engine.name
            )

    def _take_shape(self, engine: Engine, name: str, shape: tuple[int, ...]) -> None:
        if self.context.set_input_shape(name, shape):
            return
        low, best, high = (tuple(one) for one in engine.cuda_engine.get_tensor_profile_shape(name, 0))
        raise InputError(
            f"input {name!r} takes {list(low)} to {list(high)} (tuned for {list(best)}), not {list(shape)}",
            where=engine.name,
            mend="measure another --batch, or export with a wider --batch MIN:OPT:MAX",
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
        self._main: _Context | None = None
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
        self._main = main = _Context(engine, self._shapes, self._seed)
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
                mend=f"use at most {_POOL}",
            )
        engine = self._loaded()
        return [partial(_run_blocking, _Context(engine, self._shapes, self._seed)) for _ in range(count)]

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

    def _launch(self, main: _Context) -> None:
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

    def _prepared(self) -> _Context:
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
        self._context: _Context | None = _Context(engine, shapes, seed, profiler=Collector())

    def run_once(self) -> None:
        """Execute once; the profiler reports when the stream is synchronised."""
        if self._context is not None:
            _run_blocking(self._context)

    def finish(self) -> list[LayerTimes]:
        """Drop the context and return what was reported."""
        self._context = None
        return [
            LayerTimes(name=name, type="", times_ms=tuple(values[1:] or values)) for name, values in self._times.items()
        ]


def input_shapes(
    cuda: ICudaEngine, trt: Tensorrt, batch: int, given: Mapping[str, tuple[int, ...]], *, name: str
) -> dict[str, tuple[int, ...]]:
    """Fill the engine's dynamic dimensions: the first with the batch, the others from what the user gave.

    Raises:
        InputError: A dimension stays open, or a fixed one is not the batch.
    """
    shapes = {}
    for index in range(cuda.num_io_tensors):
        port = cuda.get_tensor_name(index)
        if cuda.get_tensor_mode(port) != trt.TensorIOMode.INPUT:
            continue
        shape = tuple(cuda.get_tensor_shape(port))
        first, *rest = shape
        if first not in (-1, batch):
            raise InputError(
                f"input {port!r} has a fixed batch of {first}, not {batch}", where=name, mend=f"use --batch {first}"
            )
        wanted = given.get(port, shape)[1:]
        filled = tuple(own if own != -1 else other for own, other in zip(rest, wanted, strict=False))
        if len(filled) != len(rest) or -1 in filled:
            sizes = "x".join("?" if size == -1 else str(size) for size in rest)
            raise InputError(
                f"input {port!r} has dynamic dimensions besides the batch: {sizes}",
                where=name,
                mend=f"give them with --shape {port}={batch}x{sizes}",
            )
        shapes[port] = (batch, *filled)
    return shapes


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _captured(context: _Context) -> torch.cuda.CUDAGraph | None:
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


def _run_blocking(context: _Context) -> None:
    context.enqueue()
    context.stream.synchronize()


def _dtype(engine: Engine, name: str) -> torch.dtype:
    dtype = str(engine.cuda_engine.get_tensor_dtype(name)).rpartition(".")[2]
    if dtype not in _DTYPES:
        raise InputError(f"tensor {name!r}: unsupported input dtype {dtype}", where=engine.name)
    return _DTYPES[dtype]


def _allocate(engine: Engine, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if any(size < 0 for size in shape):
        raise InputError(
            f"output {name!r} has a shape that depends on its data, {list(shape)}",
            where=engine.name,
            mend="such engines cannot be timed here; use trtexec, and give its files to --trtexec-sparse",
        )
    return torch.empty(shape, dtype=_dtype(engine, name), device="cuda")


def _draw(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, device="cuda").to(dtype)
    return torch.randint(0, 2, shape, generator=generator, device="cuda").to(dtype)
