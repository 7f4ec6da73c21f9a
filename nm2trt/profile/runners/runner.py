"""The one seam between timing and whatever executes a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nm2trt.artifacts import RunnerRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """One layer of one variant, as the backend's own profiler timed it."""

    name: str
    """The backend's name."""
    type: str
    times_ms: tuple[float, ...]
    """One for each profiled call."""
    onnx_nodes: tuple[str, ...] = ()
    """Operators of the ONNX file that it stands for; empty where the backend does not tell."""
    kernel: str | None = None
    shape: str = ""


class LayerProfiler(Protocol):
    """The network once more with a profiler attached: never the one that is timed, since profiling slows it down."""

    def run_once(self) -> None:
        """Execute the network once on the batch that its runner was prepared for."""

    def finish(self) -> list[LayerTimes]:
        """Stop, and return every layer in the order they ran; the first call is left out as warm-up."""


class Runner(Protocol):
    """One network, ready to be timed on one backend.

    A protocol and not a base class: a runner owns foreign resources (sessions, engines, device buffers) in its own
    way, and timing needs nothing from it but these. The runner takes the time itself, because the right clock
    differs: the host's around a blocking call, events on the stream for work that is only enqueued.
    """

    @property
    def record(self) -> RunnerRecord:
        """Backend, version, provider, threads and settings."""

    def prepare(self, batch: int) -> None:
        """Make inputs of `batch` samples where the network reads them, so that a call copies nothing.

        Raises:
            InputError: The network cannot take this batch.
        """

    def run_once(self) -> float:
        """Execute the network once, wait until it is done, and return the latency in milliseconds."""

    def run_with_transfers(self) -> float | None:
        """The same with copies of inputs and outputs; None where there is nothing to copy."""

    def enqueue_ms(self) -> float | None:
        """Return the time that the host took to launch the last `run_once`; None where a call is no launch."""

    def memory_bytes(self) -> int | None:
        """Return the device memory that the network holds; None where the backend does not tell."""

    def layer_profiler(self) -> LayerProfiler | None:
        """Open the network a second time with the backend's own profiler; None where it has none for layers."""

    def streams(self, count: int) -> list[Callable[[], None]]:
        """Give `count` calls that may run at the same time from different threads, on the batch of `prepare`."""

    def close(self) -> None:
        """Give up sessions, engines and buffers; harmless when called twice."""


@runtime_checkable
class GraphRunner(Protocol):
    """A runner that replays a CUDA graph where its work could be captured."""

    @property
    def has_graph(self) -> bool:
        """Whether calls replay a graph; settled by `prepare`."""

    def drop_graph(self) -> None:
        """Launch anew in each call from now on, until the next `prepare`."""


def align_graphs(runners: Iterable[object]) -> None:
    """Let all variants use CUDA graphs, or none: a graph saves launch time, which is no effect of sparsity."""
    graphed = [runner for runner in runners if isinstance(runner, GraphRunner)]
    if any(not runner.has_graph for runner in graphed):
        for runner in graphed:
            runner.drop_graph()
