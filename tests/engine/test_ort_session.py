"""Option names are held against the installed ONNX Runtime's own TensorRT provider, which loads only with CUDA."""

import re
from pathlib import Path

import onnxruntime
import pytest
from helpers import missing_requirements
from run_folders import DIGITS, random_network

from nm2trt.engine import OrtSessionDocument, ort_session
from nm2trt.export import onnx_bytes, onnx_from_module
from nm2trt.profile.onnxruntime_providers import explain_provider

PROFILE = {"input": ((1, *DIGITS), (8, *DIGITS), (64, *DIGITS))}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    for precision in ("fp32", "fp16", "bf16"):
        model = onnx_from_module(random_network("mlp"), DIGITS, precision=precision)
        (folder / f"{precision}.onnx").write_bytes(onnx_bytes(model))
    return folder


@pytest.mark.parametrize(
    ("precision", "option"), [("fp32", None), ("fp16", "trt_fp16_enable"), ("bf16", "trt_bf16_enable")]
)
def test_precision_follows_the_weights(networks, precision, option):
    document = ort_session(networks / f"{precision}.onnx", PROFILE, workspace=1 << 30)
    name, options = document.providers[0]
    assert (name, document.model) == ("TensorrtExecutionProvider", f"{precision}.onnx")
    switches = {"trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable"} & options.keys()
    assert switches == ({option} if option else set())
    assert options["trt_sparsity_enable"] == "1"
    shape = "x".join(map(str, DIGITS))
    assert options["trt_profile_min_shapes"] == f"input:1x{shape}"
    assert options["trt_profile_opt_shapes"] == f"input:8x{shape}"
    assert options["trt_profile_max_shapes"] == f"input:64x{shape}"
    assert options["trt_max_workspace_size"] == str(1 << 30)


def test_fixed_shapes_need_no_profile(networks):
    options = ort_session(networks / "fp32.onnx", {}, workspace=None).providers[0][1]
    assert not any("profile" in name or "workspace" in name for name in options)


def test_it_is_read_back(networks, tmp_path):
    document = ort_session(networks / "fp16.onnx", PROFILE, workspace=None)
    document.write(tmp_path)
    assert OrtSessionDocument.read(tmp_path) == document


def test_the_installed_provider_knows_every_option(networks):
    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    if not library.is_file():
        pytest.skip("missing: onnxruntime-gpu's TensorRT provider (pip install onnxruntime-gpu)")
    known = set(re.findall(rb"(?<![\w])trt_[a-z0-9_]+(?=\0)", library.read_bytes()))
    assert b"trt_nonsense" not in known
    options = {}
    for precision in ("fp16", "bf16"):
        options |= ort_session(networks / f"{precision}.onnx", PROFILE, workspace=1).providers[0][1]
    assert {name.encode() for name in options} | {b"trt_int8_enable"} <= known


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.skipif(bool(missing_requirements(gpu=True, tensorrt=True)), reason="missing: an NVIDIA GPU and TensorRT")
def test_a_session_takes_the_options(networks, tmp_path, monkeypatch):
    reason = explain_provider("tensorrt")
    if reason:
        pytest.skip(f"missing: a TensorRT that ONNX Runtime can open: {reason}")
    monkeypatch.chdir(tmp_path)
    document = ort_session(networks / "fp16.onnx", PROFILE, workspace=None)
    session = onnxruntime.InferenceSession(
        networks / document.model, providers=[tuple(one) for one in document.providers]
    )
    assert "TensorrtExecutionProvider" in session.get_providers()
    taken = session.get_provider_options()["TensorrtExecutionProvider"]
    assert taken["trt_sparsity_enable"] == "1"
