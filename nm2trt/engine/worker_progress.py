"""Passes the builder's progress on, from the worker process to the command that waits for it."""

from __future__ import annotations

import os
import time
from typing import Any

from nm2trt.engine.job import BuildProgress
from nm2trt.engine.process import PROGRESS

_SECONDS_BETWEEN = 0.1


def progress_monitor(trt: Any, descriptor: int) -> Any:
    """Make an `IProgressMonitor` that writes lines to a file descriptor; None where the library knows no monitors."""
    base = getattr(trt, "IProgressMonitor", None)
    return None if base is None else _made(base, Reporter(descriptor))


class Reporter:
    """Writes at most ten lines a second, of whichever phase runs: TensorRT nests them, and gives no total."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._phases: dict[str, tuple[str | None, int]] = {}
        self._last = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        self._phases[phase] = (parent, steps)
        self._write(phase, 0)

    def step(self, phase: str, step: int) -> None:
        """A step of a phase is done, counted from 0."""
        self._write(phase, step + 1)

    def finish(self, phase: str) -> None:
        """A phase ends."""
        self._phases.pop(phase, None)

    def _write(self, phase: str, done: int) -> None:
        parent, steps = self._phases.get(phase, (None, 0))
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN or steps < 1:
            return
        self._last = now
        words = f"{parent}: {phase}" if parent else phase
        line = BuildProgress(phase=" ".join(words.split()), done=min(done, steps), of=steps).model_dump_json()
        os.write(self._descriptor, PROGRESS + line.encode() + b"\n")


def _made(base: Any, reporter: Reporter) -> Any:
    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            reporter.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            reporter.step(phase_name, step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            reporter.finish(phase_name)

    return Monitor()
