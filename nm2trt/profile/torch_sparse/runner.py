"""One variant in PyTorch on a GPU: eager, compiled, or replayed from a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from nm2trt.artifacts import RunnerRecord
from nm2trt.artifacts.report import ExecutionMode
from nm2trt.errors import InputError
from nm2trt.library_errors import one_line
from nm2trt.profile.runners.runner import LayerProfiler, LayerTimes
from nm2trt.profile.torch_sparse.network import Feeds, InputLike, draw_feeds
from nm2trt.torch_sparse.conversion import ProductLayer, no_fused_attention
from nm2trt.torch_sparse.kernel_names import (
    KernelRun,
    describe_kernels,
    is_sparse_kernel,
    kernels_by_range,
    shares,
)

RANGE = "nm2trt:"
_WARMUP_CALLS = 3
_CLOCK = {
    "eager": "CUDA events around one call in eager mode; the host's launches are in it",
    "compiled": "CUDA events around one call of the module under torch.compile",
    "cuda-graph": "CUDA events around one replay of a CUDA graph of the eager module",
}


class TorchSparseRunner:
    """One module on the GPU.

    Args:
        module: In the dtype to time, on the device.
        inputs: What it takes.
        mode: How it is executed.
        dtype: Of floating-point inputs.
        seed: Of the input values.
        record: What ran.
        fused_attention: Let torch use its fused encoder layer and attention, which read weights past their modules.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[InputLike],
        *,
        mode: ExecutionMode,
        dtype: torch.dtype,
        seed: int,
        record: RunnerRecord,
        fused_attention: bool = False,
    ) -> None:
        self.module = module
        self._inputs, self._mode, self._dtype, self._seed = inputs, mode, dtype, seed
        self._record = record
        self._quiet = partial(quiet_call, fused_attention=fused_attention)
        self._call: Callable[[], Any] | None = None
        self._compiled: Any = torch.compile(module, dynamic=False) if mode == "compiled" else module
        self._graph: torch.cuda.CUDAGraph | None = None
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self._enqueue_ms: float | None = None

    @property
    def record(self) -> RunnerRecord:
        """Version, GPU, mode."""
        return self._record

    def prepare(self, batch: int) -> None:
        """Draw inputs, warm up, and capture or compile.

        Raises:
            InputError: The network cannot take this batch, or cannot be compiled or captured.
        """
        feeds = draw_feeds(self._inputs, batch, dtype=self._dtype, device="cuda", seed=self._seed)
        self._call, self._graph = partial(feeds.run, self._compiled), None
        try:
            with self._quiet():
                for _ in range(_WARMUP_CALLS):
                    self._call()
                torch.cuda.synchronize()
                if self._mode == "cuda-graph":
                    self._capture(feeds)
        except Exception as error:  # noqa: BLE001 -- the network's own code, the compiler, or CUDA
            what = {"eager": "fails", "compiled": "cannot be compiled", "cuda-graph": "cannot be captured"}[self._mode]
            raise InputError(
                f"{what} at batch {batch}: {one_line(error, whole=True)}", where=f"torch, {self._mode}"
            ) from None

    def _capture(self, feeds: Feeds) -> None:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            feeds.run(self.module)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            feeds.run(self.module)
        self._graph = graph

    def run_once(self) -> float:
        """Run once; milliseconds between two events on the GPU."""
        if self._call is None:
            raise RuntimeError("prepare() comes first")
        with self._quiet():
            started = time.perf_counter()
            self._start.record()
            if self._graph is not None:
                self._graph.replay()
            else:
                self._call()
            self._end.record()
            self._enqueue_ms = (time.perf_counter() - started) * 1000
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end))

    def outputs(self) -> Any:
        """Run once, eager, and return what the network returns."""
        if self._call is None:
            raise RuntimeError("prepare() comes first")
        with self._quiet():
            return self._call()

    def run_with_transfers(self) -> float | None:
        """Inputs and outputs stay on the GPU."""
        return None

    def enqueue_ms(self) -> float | None:
        """Milliseconds that the host took to launch the last call."""
        return self._enqueue_ms

    def memory_bytes(self) -> int | None:
        """Not asked: the variants share the process."""
        return None

    def layer_profiler(self) -> LayerProfiler | None:
        """Products are timed by `TorchLayerProfiler`, in eager mode."""
        return None

    def streams(self, count: int) -> list[Callable[[], None]]:
        """Not offered: a CUDA graph belongs to one stream."""
        raise NotImplementedError(f"{count} streams")

    def close(self) -> None:
        """Drop inputs and graph."""
        self._call, self._graph = None, None


@contextmanager
def quiet_call(*, fused_attention: bool = False) -> Iterator[None]:
    """Without gradients, and as a rule without torch's fused encoder layer."""
    with torch.no_grad(), nullcontext() if fused_attention else no_fused_attention():
        yield


class TorchLayerProfiler:
    """Times the kernels that each product of a module launches, by torch's profiler, in eager mode.

    Args:
        module: Rewritten, dense or packed.
        layers: Its products.
        call: Runs it on its inputs.
    """

    def __init__(self, module: nn.Module, layers: Sequence[ProductLayer], call: Callable[[], object]) -> None:
        self._call = call
        self._layers = [layer for layer in layers if layer.m]
        self._times: dict[str, list[float]] = {layer.module: [] for layer in self._layers}
        self._kernels: dict[str, dict[str, float]] = {}
        self._open: list[Any] = []
        self._hooks = []
        for layer in self._layers:
            try:
                product = module.get_submodule(layer.module)
            except AttributeError:
                continue
            self._hooks.append(product.register_forward_pre_hook(partial(self._enter, layer.module)))
            self._hooks.append(product.register_forward_hook(self._leave))

    def _enter(self, name: str, *_: object) -> None:
        scope = torch.profiler.record_function(f"{RANGE}{name}")
        scope.__enter__()  # type: ignore[no-untyped-call]
        self._open.append(scope)

    def _leave(self, *_: object) -> None:
        self._open.pop().__exit__(None, None, None)

    def run_once(self) -> None:
        """Profile one call."""

        def call() -> None:
            with quiet_call():
                self._call()

        self.add(kernels_by_range(call, [f"{RANGE}{name}" for name in self._times]))

    def add(self, found: dict[str, list[KernelRun]]) -> None:
        """Take the kernels of one call."""
        for name, times in self._times.items():
            runs = found.get(f"{RANGE}{name}", [])
            times.append(sum(run.duration_us for run in runs) / 1000)
            if runs:
                self._kernels[name] = dict(shares(runs))

    def sparse_shares(self) -> dict[str, float]:
        """Product -> share of its last call's time that kernels with sparse names took."""
        return {
            layer.name: sum(us for name, us in found.items() if is_sparse_kernel(name)) / sum(found.values())
            for layer in self._layers
            if (found := self._kernels.get(layer.module)) and sum(found.values())
        }

    def finish(self) -> list[LayerTimes]:
        """Take the hooks off and return the products in order; the first call is left out."""
        for hook in self._hooks:
            hook.remove()
        return [
            LayerTimes(
                name=layer.name,
                type=layer.kind,
                times_ms=tuple(self._times[layer.module][1:]),
                kernel=describe_kernels(self._kernels[layer.module]),
                shape=f"{'x'.join(map(str, layer.shape))}, {layer.m} rows",
            )
            for layer in self._layers
            if layer.module in self._kernels
        ]
