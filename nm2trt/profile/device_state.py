"""Clocks, temperature, power and what holds them down, before and after a measurement."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nm2trt.artifacts.host import available_cpus
from nm2trt.artifacts.report import DeviceState

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


def gpu_state(index: int = 0) -> DeviceState | None:
    """Ask NVML for a GPU's state; None without NVML's Python package (nvidia-ml-py) or without a GPU."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 -- not installed, or NVML's own error: both mean that nothing can be asked
        return None
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        return _state(nvml, handle)
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


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
