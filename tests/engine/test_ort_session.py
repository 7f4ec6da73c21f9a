"""Option names are held against the installed ONNX Runtime's own TensorRT provider, which loads only with CUDA."""

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import missing_requirements
from onnx import TensorProto, helper, numpy_helper
from run_folders import DIGITS, random_network

from nm2trt.engine import OrtSessionDocument, ort_session, renew_engine_cache
from nm2trt.export import onnx_bytes, onnx_from_module
from nm2trt.profile.runners.onnxruntime_providers import explain_provider

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


def network(path, *, seed, external=False, name="x"):
    """The same graph under the same names, with other weights."""
    weights = np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", [name, "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(weights, "w")],
    )
    path.parent.mkdir(exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=external, location="model.onnx.data", size_threshold=0)
    return path


def engine_cache(path):
    return ort_session(path, {"x": ((1, 64),) * 3}, workspace=None).providers[0][1]["trt_engine_cache_path"]


@pytest.mark.parametrize("external", [False, True])
def test_engines_of_other_weights_are_not_found(tmp_path, external):
    """ONNX Runtime's key has names and no weights; with external data the graph's own file is the same, too."""
    one, other = (network(tmp_path / f"{seed}/model.onnx", seed=seed, external=external) for seed in (1, 2))
    assert (one.read_bytes() == other.read_bytes()) is external
    assert engine_cache(one) != engine_cache(other)
    again = network(tmp_path / "again/model.onnx", seed=1, external=external)
    assert engine_cache(one) == engine_cache(again)
    # ONNX Runtime makes one folder, and none above it.
    assert "/" not in engine_cache(one)


def test_a_build_with_new_weights_gets_a_new_cache(tmp_path):
    path = network(tmp_path / "build/model.onnx", seed=1)
    ort_session(path, {"x": ((1, 64),) * 3}, workspace=None).write(path.parent)
    old = OrtSessionDocument.read(path.parent)
    network(path, seed=2)
    renew_engine_cache(path.parent)
    new = OrtSessionDocument.read(path.parent)
    assert new.providers[0][1].pop("trt_engine_cache_path") == engine_cache(path)
    assert old.providers[0][1].pop("trt_engine_cache_path") != engine_cache(path)
    assert new.providers == old.providers
    renew_engine_cache(tmp_path)


@pytest.mark.parametrize("name", ["serving_default/x:0", "a,b"])
def test_a_name_that_onnx_runtime_takes_apart_gets_no_profile(tmp_path, name):
    path = network(tmp_path / "b/model.onnx", seed=1, name=name)
    document = ort_session(path, {name: ((1, 64), (8, 64), (64, 64))}, workspace=None)
    assert not any("profile" in key for key in document.providers[0][1])
    assert repr(name) in document.no_profile
