"""What the GPU does at best: copying, launching; and what it is."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from nm2trt.gpu_benchmark.gpu_schema import MachineRecord
from nm2trt.gpu_benchmark.timing import Timer
from nm2trt.profile.device_state import driver_version
from nm2trt.torch_sparse.backends import describe_state, detect_backends

_COPY_BYTES = 1 << 32
_WARM_ELEMENTS, _WARM_S = 1 << 26, 1.0
_REPEATS = 20
_LAUNCHES = 200


def machine_record() -> MachineRecord:
    """Describe the first GPU and the libraries."""
    properties = torch.cuda.get_device_properties(0)
    states = detect_backends()
    return MachineRecord(
        name=properties.name,
        capability=(properties.major, properties.minor),
        multiprocessors=properties.multi_processor_count,
        l2_mib=properties.L2_cache_size / 2**20,
        memory_gib=round(properties.total_memory / 2**30, 1),
        driver=driver_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        cusparselt=next((state.version or None for state in states if state.name == "cusparselt"), None),
        backends=tuple(describe_state(state) for state in states),
    )


def warm_up() -> None:
    """Keep the GPU busy until an idle one's clocks have risen, by work that stays below its power limit."""
    values = torch.randn(_WARM_ELEMENTS, device="cuda")
    started = time.perf_counter()
    while time.perf_counter() - started < _WARM_S:
        values.mul_(1.0)
        torch.cuda.synchronize()


def copy_gb_s(timer: Timer) -> float:
    """Fastest pass over device memory by a kernel that reads and writes each element, in bytes read and written."""
    free, _ = torch.cuda.mem_get_info()
    size = min(_COPY_BYTES, free // 8) // 4
    source = torch.randn(size, device="cuda")
    target = torch.empty_like(source)
    replay = timer.prepare([lambda: torch.add(source, 1.0, out=target)], 1)
    fastest_us = min(replay() for _ in range(_REPEATS))
    return 2 * 4 * size / fastest_us / 1e3


def launch_us(timer: Timer) -> float:
    """Time of a kernel that does next to nothing, in a graph of many."""
    value = torch.zeros(1, device="cuda")
    replay = timer.prepare([lambda: value.add_(1)], _LAUNCHES)
    return min(replay() for _ in range(_REPEATS)) / _LAUNCHES


def eager_launch_us(clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of the same kernel launched by the host, one call after the other."""
    value = torch.zeros(1, device="cuda")
    for _ in range(_LAUNCHES):
        value.add_(1)
    torch.cuda.synchronize()
    started = clock()
    for _ in range(_LAUNCHES):
        value.add_(1)
    torch.cuda.synchronize()
    return (clock() - started) / _LAUNCHES * 1e6
