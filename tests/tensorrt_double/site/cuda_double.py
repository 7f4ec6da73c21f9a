"""torch.cuda on a CPU: device memory is the host's, streams run at once, and the rules of capture are held.

A pair of events shares a stream; nothing is recorded or synchronized within a capture; an empty capture fails, and
leaves the current stream as torch 2.14 does, whose capture_end raises before the stream is left.
"""

from __future__ import annotations

import os
import time
from types import SimpleNamespace, TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
    "http://www.nvidia.com/Download/index.aspx"
)
OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
UUID = "4a8f2c1e-0000-4000-8000-00000000d0d0"
NAME = "NVIDIA A100-SXM4-80GB"


def _captures() -> list[list[Any]]:
    from tensorrt._run import CAPTURES

    return CAPTURES


class OnHost(TorchFunctionMode):
    """Sends device="cuda" to the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        if func is torch.Tensor.cuda:
            return args[0]
        return func(*args, **kwargs)


class Stream:
    """A stream on which all work is done when it is enqueued."""

    count = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        Stream.count += 1
        self.cuda_stream = 0x1000 + Stream.count

    def synchronize(self) -> None:
        if _captures():
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def wait_stream(self, _other: Stream) -> None:
        """Nothing is ever pending."""

    def wait_event(self, _event: Event) -> None:
        """Nothing is ever pending."""


DEFAULT = Stream()
CURRENT = [DEFAULT]


class Event:
    """A moment on a stream."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self._timing = enable_timing
        self._at: float | None = None
        self._stream: Stream | None = None

    def record(self, stream: Stream | None = None) -> None:
        if _captures():
            raise RuntimeError("CUDA error: event recorded within a capture")
        self._at, self._stream = time.perf_counter(), stream or CURRENT[-1]

    def synchronize(self) -> None:
        if self._at is None:
            raise RuntimeError("CUDA error: the event was never recorded")

    def query(self) -> bool:
        return self._at is not None

    def elapsed_time(self, other: Event) -> float:
        if not (self._timing and other._timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self._at is None or other._at is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        if self._stream is not other._stream:
            raise RuntimeError("the double: a pair of events was recorded on two streams")
        return (other._at - self._at) * 1000


class StreamContext:
    """`with torch.cuda.stream(stream)`."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        CURRENT.append(self._stream)

    def __exit__(self, *_: object) -> None:
        CURRENT.pop()


class CUDAGraph:
    """The calls that were captured."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.calls: list[Any] = []

    def capture_begin(self, *_: Any, **__: Any) -> None:
        if CURRENT[-1] is DEFAULT:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        _captures().append([])

    def capture_end(self) -> None:
        self.calls = _captures().pop()
        if not self.calls:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def replay(self) -> None:
        if not self.calls:
            raise RuntimeError("CUDA error: an empty graph was replayed")
        for call in self.calls:
            call()

    def reset(self) -> None:
        self.calls = []


class GraphContext:
    """`with torch.cuda.graph(graph)`."""

    def __init__(self, graph: CUDAGraph, pool: Any = None, stream: Stream | None = None, **_: Any) -> None:
        self._graph, self._context = graph, StreamContext(stream or Stream())

    def __enter__(self) -> None:
        self._context.__enter__()
        _captures().append([])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        calls = _captures().pop()
        if kind is not None or not calls:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self._graph.calls = calls
        self._context.__exit__(kind, error, trace)


def install() -> None:
    """Replace torch.cuda's functions for the rest of this process.

    NM2TRT_TENSORRT_DOUBLE_TORCH=no_driver or old_driver leaves torch without a GPU, in torch's own words.
    """
    refusal = {"no_driver": NO_DRIVER, "old_driver": OLD_DRIVER}.get(os.environ.get("NM2TRT_TENSORRT_DOUBLE_TORCH", ""))
    if refusal is not None:
        _refuse(refusal)
        return
    real = torch.Generator

    class Meta(type):
        def __instancecheck__(cls, one: object) -> bool:
            return isinstance(one, real)

    class Generator(metaclass=Meta):
        def __new__(cls, device: Any = None) -> Any:
            return real("cpu")

    cuda: Any = torch.cuda
    torch.Generator = Generator  # type: ignore[assignment,misc]
    properties = SimpleNamespace(
        multi_processor_count=108, name=NAME, uuid=UUID, total_memory=80 << 30, major=8, minor=0
    )
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: 0
    cuda.get_device_capability = lambda *_: (8, 0)
    cuda.get_device_name = lambda *_: NAME
    cuda.get_device_properties = lambda *_: properties
    cuda.synchronize = lambda *_: None
    cuda.empty_cache = lambda: None
    cuda._sleep = lambda _cycles: None
    cuda.Stream, cuda.Event, cuda.CUDAGraph = Stream, Event, CUDAGraph
    cuda.ExternalStream = lambda handle, *_, **__: SimpleNamespace(cuda_stream=handle)
    cuda.graph, cuda.stream = GraphContext, StreamContext
    cuda.current_stream = lambda *_: CURRENT[-1]
    cuda.set_stream = lambda stream: CURRENT.__setitem__(-1, stream)
    cuda.get_rng_state = lambda *_: real("cpu").get_state()
    OnHost().__enter__()


def _refuse(words: str) -> None:
    def init() -> None:
        raise RuntimeError(words)

    cuda: Any = torch.cuda
    cuda.is_available = lambda: False
    cuda.init = init
    torch.version.cuda = "13.0"  # type: ignore[assignment]
