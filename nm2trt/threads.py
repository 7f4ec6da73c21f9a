"""How many threads torch and ONNX Runtime use on a CPU, and what those do that have nothing to do.

OpenMP's threads wait for work by turning (spinning), which is quick on an idle machine. Beside other work the threads
that spin keep the ones that work from the cores, and training a small network takes forty times as long. Two choices
avoid it: idle threads sleep, which has to be asked for before torch loads its OpenMP, and a network whose batches are
small gets one thread, which anything more would only make wait for each other.

Nothing heavy is imported here, so that a command can choose before anything else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Source = Literal["option", "environment", "state", "work", "cores"]
Waiting = Literal["sleep", "spin"]

GFLOP_PER_THREAD = 1.0
"""Work of one batch's forward pass that occupies a thread for some ten milliseconds, against the microseconds that
waking it costs."""

_COUNT, _POLICY, _SPINS = "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"

_IN_WORDS = {
    "option": "--threads",
    "environment": _COUNT,
    "state": "as the run was started",
    "cores": "the cores that this process may use",
}


@dataclass(frozen=True, slots=True)
class ThreadChoice:
    """What was chosen, and by whom."""

    threads: int
    source: Source
    waiting: Waiting
    """What idle threads do: "sleep", or "spin" where torch was loaded before anybody asked, or the user wants it."""
    gflop: float | None = None
    """Work of one batch's forward pass, where the choice followed from it."""

    def __str__(self) -> str:
        count = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        why = f"a batch is {self.gflop:.2g} GFLOP" if self.source == "work" else _IN_WORDS[self.source]
        idle = "" if self.threads == 1 else f"; idle ones {self.waiting}"
        return f"{count} ({why}{idle})"


_requested: int | None = None


def available_cpus() -> int:
    """CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepare_threads(requested: int | None = None, *, sleep: bool = True) -> None:
    """Settle what has to be settled before torch is imported; what the user's environment says is left as it is.

    Args:
        requested: Of `--threads`; wins over OMP_NUM_THREADS.
        sleep: Let idle threads sleep. Off where torch's own behavior is what is measured.
    """
    global _requested
    _requested = requested
    if requested is not None:
        os.environ[_COUNT] = str(requested)
    if sleep and _POLICY not in os.environ and _SPINS not in os.environ and "torch" not in sys.modules:
        os.environ[_POLICY] = "PASSIVE"


def choose_threads(gflop: float | None = None, *, before: int | None = None) -> ThreadChoice:
    """Choose a number of threads: `--threads`, else OMP_NUM_THREADS, else as before, else by the work, else all cores.

    Args:
        gflop: Work of one batch's forward pass, in units of 1e9 floating-point operations.
        before: Threads of the run that is gone on with.
    """
    cores, given, waiting = usable_cores(), _environment_count(), _waiting()
    if _requested is not None:
        return ThreadChoice(_requested, "option", waiting)
    if given is not None:
        return ThreadChoice(given, "environment", waiting)
    if before is not None:
        return ThreadChoice(before, "state", waiting)
    if gflop is not None:
        return ThreadChoice(max(1, min(cores, int(gflop / GFLOP_PER_THREAD))), "work", waiting, gflop)
    return ThreadChoice(cores, "cores", waiting)


def usable_cores() -> int:
    """Cores behind the CPUs that this process may use: two threads of one core share its arithmetic."""
    if not hasattr(os, "sched_getaffinity"):
        return available_cpus()
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text(encoding="ascii").strip())
        except (OSError, UnicodeDecodeError):
            cores.add(str(cpu))
    return max(1, len(cores))


def threads_to_measure() -> int:
    """Threads of a network that is timed: `--threads`, else every CPU, whatever else is set: as it would be served."""
    return _requested if _requested is not None else available_cpus()


def settle_session(options: Any, threads: int | None = None) -> None:
    """Give an `onnxruntime.SessionOptions` its threads, None: those that were chosen; none of them spins when idle."""
    options.intra_op_num_threads = choose_threads().threads if threads is None else threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")


def _environment_count() -> int | None:
    # A list gives the threads of nested regions; torch has none.
    first = os.environ.get(_COUNT, "").split(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else None


def _waiting() -> Waiting:
    return "sleep" if os.environ.get(_POLICY, "").lower() == "passive" and _SPINS not in os.environ else "spin"


@contextmanager
def torch_threads(choice: ThreadChoice) -> Iterator[ThreadChoice]:
    """Let torch use so many threads inside the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(choice.threads)
    try:
        yield choice
    finally:
        torch.set_num_threads(before)
