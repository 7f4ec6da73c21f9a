"""Which CUDA kernels ran, from torch's profiler, and which of them use sparse Tensor Cores, by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch.autograd.profiler_util import FunctionEvent

_SPARSE = re.compile(r"sparse|spmma|sp_?gemm", re.IGNORECASE)
_PREPARES = re.compile(r"compress|prune|convert|transform", re.IGNORECASE)
"""Kernels of the sparse libraries that only prepare operands."""
_MATRIX = re.compile(r"gemm|spmma|cutlass|xmma|nvjet|wgmma|conv|s\d+nn|mma", re.IGNORECASE)


_LONGEST_NAME = 120


@dataclass(frozen=True, slots=True)
class KernelRun:
    """One kernel of one call."""

    name: str
    duration_us: float


def is_sparse_kernel(name: str) -> bool:
    """Whether a kernel's name says that it multiplies by 2:4 weights."""
    return bool(_SPARSE.search(name)) and not _PREPARES.search(name)


def is_matrix_kernel(name: str) -> bool:
    """Whether a kernel's name is that of a matrix product or convolution."""
    return bool(_MATRIX.search(name))


def kernels_of(call: Callable[[], object], *, calls: int = 1) -> tuple[KernelRun, ...]:
    """Run under torch's profiler and list the kernels that ran on the GPU, in order; copies and fills are left out."""
    events = _profiled(call, calls)
    found = [
        KernelRun(event.name, float(event.device_time))
        for event in sorted(events, key=lambda event: event.time_range.start)
        if event.device_type.name == "CUDA" and not _is_no_kernel(event.name)
    ]
    return tuple(found)


def kernels_by_range(call: Callable[[], object], names: Iterable[str]) -> dict[str, list[KernelRun]]:
    """Run under torch's profiler and sort kernels by the `record_function` range that launched them."""
    wanted = set(names)
    found: dict[str, list[KernelRun]] = {name: [] for name in wanted}
    for event in _profiled(call, 1):
        if event.device_type.name != "CPU" or not event.kernels:
            continue
        parent: FunctionEvent | None = event
        while parent is not None and parent.name not in wanted:
            parent = parent.cpu_parent
        if parent is not None:
            found[parent.name] += [KernelRun(one.name, float(one.duration)) for one in event.kernels]
    return {name: runs for name, runs in found.items() if runs}


def _profiled(call: Callable[[], object], calls: int) -> list[FunctionEvent]:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    return list(profiler.events() or ())


def _is_no_kernel(name: str) -> bool:
    """Copies, fills, and runtime calls, where a version of the profiler lists them as device events."""
    return name.startswith(("Mem", "cuda", "cuLaunch", "cuMem"))


def shares(runs: Iterable[KernelRun]) -> Mapping[str, float]:
    """Kernel name -> microseconds, the longest first."""
    total: dict[str, float] = {}
    for run in runs:
        total[run.name] = total.get(run.name, 0.0) + run.duration_us
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def describe_kernels(microseconds: Mapping[str, float]) -> str:
    """Name what ran: the matrix kernels; where there is none, the longest kernel. Template arguments are cut."""
    names = [name for name in microseconds if is_matrix_kernel(name) and not _is_no_kernel(name)]
    names = names or [name for name in microseconds if not _is_no_kernel(name)][:1]
    return " + ".join(dict.fromkeys(short_name(name) for name in names))


def short_name(name: str) -> str:
    """A kernel's name without its return type and arguments, at most 120 characters."""
    bare = name.removeprefix("void ").partition("(")[0]
    return bare if len(bare) <= _LONGEST_NAME else f"{bare[: _LONGEST_NAME - 1]}…"
