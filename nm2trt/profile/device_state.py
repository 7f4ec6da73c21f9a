"""Clocks, temperature, power and what holds them down, before and after a measurement."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from nm2trt.artifacts.report import DeviceState
from nm2trt.threads import available_cpus

_LOOK_EVERY_S = 0.25
_THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal limit",
    0x40: "hardware thermal limit",
    0x80: "power brake",
    0x100: "display clock",
}
"""NVML's clock event reasons; idling (0x1) and a clock that somebody set (0x2) are left out."""


def cpu_state() -> DeviceState:
    """How busy the machine's CPUs are."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    cpus = available_cpus()
    return DeviceState(device=f"CPU ({cpus} available)", cpu_load=None if load is None else round(load / cpus, 2))


def gpu_state(uuid: str | None = None) -> DeviceState | None:
    """Ask NVML for a GPU's state; None without NVML's Python package (nvidia-ml-py) or without that GPU.

    Args:
        uuid: Of the GPU, with or without "GPU-"; None takes the one that torch uses. NVML counts all GPUs of the
            machine, in the order of the bus, whatever CUDA_VISIBLE_DEVICES says, so an index names nothing here.
    """
    wanted = uuid if uuid is not None else current_uuid()
    if not wanted:
        return None
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 -- not installed, or NVML's own error: both mean that nothing can be asked
        return None
    try:
        handle = _find_handle(nvml, wanted)
        return None if handle is None else _state(nvml, handle)
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def current_uuid() -> str:
    """UUID of the GPU that torch uses; "" without one."""
    import torch

    if not torch.cuda.is_available():
        return ""
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def mig_slice() -> bool:
    """Whether the GPU that torch uses is a MIG slice, which has a part of the card's units and bandwidth."""
    import torch

    if not torch.cuda.is_available():
        return False
    name = torch.cuda.get_device_name()
    return "MIG" in name.split() or current_uuid().startswith("MIG-")


def _find_handle(nvml: Any, uuid: str) -> Any:
    wanted = uuid.removeprefix("GPU-").lower()
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        found = nvml.nvmlDeviceGetUUID(handle)
        text = found.decode() if isinstance(found, bytes) else str(found)
        if text.removeprefix("GPU-").lower() == wanted:
            return handle
    # A slice has a UUID of its own; its card's clocks are its clocks.
    return nvml.nvmlDeviceGetHandleByUUID(uuid) if uuid.startswith("MIG-") else None


@dataclass
class Throttling:
    """What held the device down while it was watched."""

    reasons: set[str] = field(default_factory=set)
    looks: int = 0

    def added_to(self, state: DeviceState | None) -> DeviceState | None:
        """The state with the reasons that were seen at any moment."""
        if state is None:
            return None
        every = dict.fromkeys([*state.throttle_reasons, *sorted(self.reasons)])
        return state.model_copy(update={"throttle_reasons": tuple(every)})


@contextmanager
def watch_throttling(look: Callable[[], DeviceState | None], *, every_s: float = _LOOK_EVERY_S) -> Iterator[Throttling]:
    """Look at the device from a thread, from the beginning to the end: two looks miss what is between them."""
    seen = Throttling()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            state = look()
            if state is not None:
                seen.looks += 1
                seen.reasons.update(state.throttle_reasons)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def driver_version() -> str | None:
    """Version of the driver by NVML; None where nobody tells."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        try:
            version = nvml.nvmlSystemGetDriverVersion()
        finally:
            nvml.nvmlShutdown()
    except Exception:  # noqa: BLE001 -- not installed, or NVML's own error: nobody tells
        return None
    return version.decode() if isinstance(version, bytes) else str(version)


def _state(nvml: Any, handle: Any) -> DeviceState:
    def ask(question: Callable[[], Any]) -> Any:
        # Not every GPU answers every question; the others' answers still count.
        with suppress(nvml.NVMLError, AttributeError):
            return question()
        return None

    power_mw = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    limit_mw = ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    reasons = ask(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    if reasons is None:
        reasons = ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    name = ask(lambda: nvml.nvmlDeviceGetName(handle)) or "GPU"
    return DeviceState(
        device=name.decode() if isinstance(name, bytes) else str(name),
        clock_sm_mhz=ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        clock_sm_max_mhz=ask(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        clock_memory_mhz=ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        temperature_c=ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        power_w=None if power_mw is None else power_mw / 1000,
        power_limit_w=None if limit_mw is None else limit_mw / 1000,
        memory_used_bytes=None if memory is None else int(memory.used),
        throttle_reasons=tuple(words for bit, words in _THROTTLES.items() if (reasons or 0) & bit),
    )
