"""NVML's answers become a record; what it does not answer stays open."""

import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest

from nm2trt.artifacts.report import DeviceState
from nm2trt.profile import device_state
from nm2trt.profile.device_state import cpu_state, gpu_state, watch_throttling

UUIDS = ["GPU-11111111-0000", "GPU-aaaaaaaa-0000"]


def fake_nvml(*, reasons):
    module = ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def unsupported(*_):
        raise NVMLError("not supported")

    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(UUIDS),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda index: UUIDS[index].encode(),
        "nvmlDeviceGetName": lambda index: [b"NVIDIA T4", b"NVIDIA A100 80GB PCIe"][index],
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
    # CUDA_VISIBLE_DEVICES=1 makes this torch's first GPU, and it stays NVML's second.
    state = gpu_state("AAAAAAAA-0000")
    assert (state.device, state.clock_sm_mhz, state.clock_memory_mhz) == ("NVIDIA A100 80GB PCIe", 1410, 1512)
    assert (state.power_w, state.power_limit_w, state.temperature_c) == (251.5, None, 61)
    assert state.throttle_reasons == words


def test_without_nvml_nothing_is_claimed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_state(UUIDS[0]) is None
    assert "CPU" in cpu_state().device


def test_a_gpu_that_nvml_does_not_know_has_no_state(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(reasons=0))
    assert gpu_state("GPU-22222222-0000") is None


def test_without_a_gpu_there_is_none_to_ask_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(reasons=0))
    monkeypatch.setattr(device_state, "current_uuid", lambda: "")
    assert gpu_state() is None


def test_throttling_between_two_looks_is_seen():
    states = iter([(), ("power cap",), ()])
    seen = threading.Event()

    def look():
        reasons = next(states, None)
        if reasons is None:
            seen.set()
        return DeviceState(device="GPU", throttle_reasons=reasons or ())

    with watch_throttling(look, every_s=0.001) as throttled:
        assert seen.wait(30)
    assert throttled.looks >= 3
    after = throttled.added_to(DeviceState(device="GPU", throttle_reasons=("hardware slowdown",)))
    assert after.throttle_reasons == ("hardware slowdown", "power cap")
    assert throttled.added_to(None) is None


@pytest.mark.parametrize(
    ("name", "mig"), [("NVIDIA A100-SXM4-80GB MIG 3g.40gb", True), ("NVIDIA A100-SXM4-80GB", False)]
)
def test_a_slice_has_no_data_sheet(monkeypatch, name, mig):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(device_state, "current_uuid", lambda: UUIDS[0])
    assert device_state.mig_slice() is mig
