"""NVML's answers become a record; what it does not answer stays open."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from nm2trt.profile.device_state import cpu_state, gpu_state


def fake_nvml(*, reasons):
    module = ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def unsupported(*_):
        raise NVMLError("not supported")

    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda _: b"NVIDIA A100 80GB PCIe",
        "nvmlDeviceGetClockInfo": lambda _, kind: {1: 1410, 2: 1512}[kind],
        "nvmlDeviceGetMaxClockInfo": lambda _, _kind: 1410,
        "nvmlDeviceGetTemperature": lambda *_: 61,
        "nvmlDeviceGetPowerUsage": lambda _: 251_500,
        "nvmlDeviceGetEnforcedPowerLimit": unsupported,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=123),
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _: reasons,
    }
    for name, value in answers.items():
        setattr(module, name, value)
    module.NVMLError, module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM, module.NVML_TEMPERATURE_GPU = NVMLError, 1, 2, 0
    return module


@pytest.mark.parametrize(
    ("reasons", "words"), [(0x0, ()), (0x1 | 0x2, ()), (0x4 | 0x40, ("power cap", "hardware thermal limit"))]
)
def test_what_nvml_tells(monkeypatch, reasons, words):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(reasons=reasons))
    state = gpu_state()
    assert (state.device, state.clock_sm_mhz, state.clock_memory_mhz) == ("NVIDIA A100 80GB PCIe", 1410, 1512)
    assert (state.power_w, state.power_limit_w, state.temperature_c) == (251.5, None, 61)
    assert state.throttle_reasons == words


def test_without_nvml_nothing_is_claimed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_state() is None
    assert "CPU" in cpu_state().device
