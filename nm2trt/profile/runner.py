"""The one seam between timing and whatever executes a network."""

from __future__ import annotations

from typing import Protocol

from nm2trt.artifacts import RunnerRecord


class Runner(Protocol):
    """One network, ready to be timed on one backend.

    A protocol and not a base class: a runner owns foreign resources (sessions, engines, device buffers) in its own
    way, and timing needs nothing from it but these four. The runner takes the time itself, because the right clock
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

    def close(self) -> None:
        """Give up sessions, engines and buffers; harmless when called twice."""
