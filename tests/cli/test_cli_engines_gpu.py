"""The whole way on a GPU: build three variants, read their evidence, load them through the gate, run them, compare."""

import numpy as np
import onnx
import onnxruntime
import pytest
from engine_runs import keep_evidence, run_plan
from helpers import nm2trt_inline, requires
from run_folders import make_run
from tensorrt_double.site.bfloat16 import widen_bfloat16

from nm2trt.artifacts import BuildDocument, FactState, check_plan
from nm2trt.errors import InputError
from nm2trt.pipelines.inspect import inspect_build

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt, requires(gpu=True, tensorrt=True)]
VARIANTS = ("dense", "control", "sparse")


@pytest.fixture(scope="module", params=["fp32", "fp16", "bf16"])
def build(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make_run(folder / "sparse", "resnet8")
    make_run(folder / "dense", "resnet8", sparse=False)
    options = ("--precision", request.param, "--builder", "tensorrt", "--batch", "1:8:64")
    first = nm2trt_inline("export", folder / "dense", "-o", folder / "d", *options[:2], "--builder", "none")
    assert first.returncode == 0, first.stderr
    result = nm2trt_inline("export", folder / "sparse", "-o", folder / "b", *options, "--dense", folder / "d", "--ort")
    assert result.returncode == 0, result.stderr
    keep_evidence(folder / "b", f"resnet8-{request.param}")
    return folder / "b"


def test_three_arms_are_built_and_inspected(build):
    document = BuildDocument.read(build)
    assert [(one.variant, one.error) for one in document.engines] == [(variant, None) for variant in VARIANTS]
    assert ["SPARSE_WEIGHTS" in one.flags for one in document.engines] == [False, False, True]
    assert document.facts.chosen.state in (FactState.PROVED, FactState.DISPROVED, FactState.UNKNOWN)
    assert f"SM{document.engines[0].sm}" in document.facts.chosen.evidence
    inspected = {engine.name: engine for engine in inspect_build(build).engines}
    for variant in VARIANTS:
        assert (build / f"{variant}.layers.json").stat().st_size > 100
        assert inspected[variant].totals.layers > 0
        led_back = {name for layer in inspected[variant].layers for name in layer.torch_names}
        assert led_back == {layer["name"] for layer in document.pattern["layers"]}, variant
    assert inspected["dense"].totals.sparse == inspected["control"].totals.sparse == 0
    sparse = inspected["sparse"]
    assert sparse.totals.sparse <= sparse.totals.eligible
    if sparse.log_chosen is not None:
        assert sparse.totals.sparse + sparse.totals.hidden >= sparse.log_chosen


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", [1, 8, 64])
def test_each_arm_computes_what_onnx_runtime_computes(build, variant, batch):
    document = BuildDocument.read(build)
    x = np.random.default_rng(batch).standard_normal((batch, *document.inputs[0].shape[1:])).astype(np.float32)
    file = build / ("dense.onnx" if variant == "dense" else "model.onnx")
    feeds = {document.inputs[0].name: x}
    content = widen_bfloat16(onnx.load(file)).SerializeToString()
    (expected,) = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, feeds)
    found = run_plan(build, variant, feeds)[document.outputs[0].name]
    bound = {"fp32": 5e-3, "fp16": 1e-2, "bf16": 5e-2}[document.precision]
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


def test_a_changed_plan_is_never_loaded(build, tmp_path):
    document = BuildDocument.read(build)
    copy = tmp_path / "b"
    copy.mkdir()
    for path in build.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    plan = copy / "sparse.plan"
    plan.write_bytes(plan.read_bytes()[:-1] + b"!")
    engine = document.engines[2]
    with pytest.raises(InputError, match="sha256"):
        check_plan(copy, "sparse", tensorrt_version=engine.builder_version, sm=engine.sm, platform=engine.platform)
