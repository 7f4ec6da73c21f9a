"""Why ONNX Runtime's providers cannot be opened: the driver, the package, or TensorRT of another major version."""

from types import SimpleNamespace

import onnxruntime as ort
import pytest
from small_networks import small_network

from nm2trt.errors import MachineError
from nm2trt.profile.runners import onnxruntime_providers as providers
from nm2trt.profile.runners.onnxruntime_runner import OnnxRuntimeRunner


@pytest.fixture
def machine(monkeypatch):
    """A machine with a driver and a TensorRT of the version that the test names."""

    def have(version):
        monkeypatch.setattr(providers, "_has_driver", lambda: True)
        monkeypatch.setattr(ort, "get_available_providers", lambda: list(providers.PROVIDERS.values()))
        monkeypatch.setattr(ort, "preload_dlls", lambda: None)
        monkeypatch.setattr(providers, "_try_provider", lambda _: "")
        monkeypatch.setattr(providers, "needed_tensorrt", lambda: 10)
        monkeypatch.setattr(providers, "explain_missing_package", lambda _: None)
        monkeypatch.setattr(providers, "load_tensorrt", lambda _: SimpleNamespace(__version__=version))

    return have


def test_another_major_version_is_named(machine):
    machine("11.4.0.106")
    with pytest.raises(MachineError, match=r"built for TensorRT 10, and 11\.4\.0\.106 is installed.*tensorrt==10\.\*"):
        providers.require_device("tensorrt")


def test_the_right_version_opens(machine):
    machine("10.16.1.11")
    providers.require_device("tensorrt")
    assert providers.explain_provider("tensorrt") == ""


def test_what_the_provider_needs_is_read_off_its_library():
    if "TensorrtExecutionProvider" not in ort.get_available_providers():
        pytest.skip("missing: onnxruntime-gpu's TensorRT provider (pip install onnxruntime-gpu)")
    assert providers.needed_tensorrt() in range(8, 20)


def test_without_a_driver_that_is_the_reason(monkeypatch):
    monkeypatch.setattr(providers, "_has_driver", lambda: False)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert providers.explain_provider("cuda") == "no NVIDIA driver here"
    assert "built without it" in providers.explain_provider("tensorrt")


@pytest.mark.parametrize(("prefix", "expected"), [("", ["x:2x4x6x6", "x:4x4x6x6"]), ("a:", [None, None])])
def test_tensorrts_engines_are_tuned_for_the_batch_that_is_timed(monkeypatch, prefix, expected):
    real, asked = ort.InferenceSession, []

    def session(content, options, providers):
        asked.append(providers)
        return real(content, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", session)
    runner = OnnxRuntimeRunner(small_network(sparse=True, prefix=prefix), name="net", device="tensorrt")
    runner._device = "cpu"  # where the buffers lie
    opened = len(asked)
    for batch in (2, 4):
        runner.prepare(batch)
        runner.prepare(batch)
    assert len(asked) == opened + 2
    shapes = [providers[0][1].get("trt_profile_opt_shapes") for providers in asked[opened:]]
    assert shapes == expected
    assert [providers[0][1].get("trt_profile_max_shapes") for providers in asked[opened:]] == expected
