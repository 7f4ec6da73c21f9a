"""`nm2trt inspect` on a build of RTX and on others' files."""

import json

import onnx
import pytest
from helpers import assert_one_error_line, export_run, nm2trt_inline, requires
from run_folders import make_run
from small_networks import build_folder, small_network

from nm2trt.artifacts import BuildDocument
from nm2trt.pipelines.inspect import inspect_build

SPARSE = "sm80_xmma_fprop_sparse_conv_f16f16_f16f16_f16_nhwckrsc_nhwc_sptensor16x8x32"
DENSE = "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc"
LOG = """\
[I] [TRT] (Sparsity) Found 2 layer(s) eligible to use sparse tactics: conv1 + relu1, fc
[I] [TRT] (Sparsity) Chose 1 layer(s) using sparse tactics: conv1 + relu1
"""


@pytest.fixture
def files(tmp_path):
    layers = [
        {"Name": "conv1 + relu1", "LayerType": "CaskConvolution", "HasSparseWeights": 1, "TacticName": SPARSE},
        {"Name": "fc", "LayerType": "CaskConvolution", "HasSparseWeights": 1, "TacticName": DENSE},
        {"Name": "pool", "LayerType": "CudaPooling"},
    ]
    (tmp_path / "l.json").write_text(json.dumps({"Layers": layers, "Bindings": ["x", "y"]}))
    (tmp_path / "b.log").write_text(LOG)
    return tmp_path


def test_files_of_others_become_a_table_and_totals(files):
    result = nm2trt_inline("inspect", "--layers", files / "l.json", "--log", files / "b.log")
    assert (result.returncode, result.stderr) == (0, "")
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "sparse" in lines["conv1"]
    assert SPARSE[:30] in lines["conv1"]
    assert "dense" in lines["fc"]
    assert "pool" not in result.stdout
    assert (
        "3 layers, 2 with weights: 2 eligible; 1 run a sparse kernel, 1 a dense one, 0 do not show it" in result.stdout
    )
    assert "the log: 2 found eligible, 1 chosen" in result.stdout
    assert "pool" in nm2trt_inline("inspect", "--layers", files / "l.json", "--all-layers").stdout


def test_json_holds_every_layer(files):
    result = nm2trt_inline("inspect", "--layers", files / "l.json", "--log", files / "b.log", "--json")
    document = json.loads(result.stdout)
    assert document["schema"] == "nm2trt.inspect/1"
    (engine,) = document["engines"]
    assert [(layer["name"], layer["chosen"]) for layer in engine["layers"]] == [
        ("conv1 + relu1", True), ("fc", False), ("pool", False),
    ]  # fmt: skip
    assert engine["totals"] == {
        "layers": 3, "with_weights": 2, "weights_unknown": 0, "eligible": 2, "eligible_unknown": 0, "sparse": 1,
        "dense": 1, "hidden": 0,
    }  # fmt: skip


def test_too_few_sparse_kernels_are_exit_1(files):
    assert nm2trt_inline("inspect", "--layers", files / "l.json", "--require", "1").returncode == 0
    result = nm2trt_inline("inspect", "--layers", files / "l.json", "--require", "2", "--json")
    assert result.returncode == 1
    assert "1 layers run a sparse kernel, and --require asks for 2" in result.stderr
    json.loads(result.stdout)


def test_a_log_alone_is_enough(files):
    result = nm2trt_inline("inspect", "--log", files / "b.log")
    assert result.returncode == 0
    assert "1 run a sparse kernel, 1 a dense one" in result.stdout


def test_the_network_names_weights(files):
    model = small_network(seed=1)
    model.graph.node[0].name = "conv1"
    onnx.save(model, files / "m.onnx")
    result = nm2trt_inline("inspect", "--layers", files / "l.json", "--onnx", files / "m.onnx", "--json")
    layer = json.loads(result.stdout)["engines"][0]["layers"][0]
    assert layer["onnx_nodes"] == ["conv1"]
    assert layer["torch_names"] == [model.graph.node[0].input[1]]


def test_a_print_behind_the_log_makes_no_sparse_layer(files):
    old = "[I] [TRT] (Sparsity) Layers eligible for sparse math: Conv_1, Conv_2, Conv_3\n"
    old += "[I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: Conv_1, Conv_2\ndone\n"
    (files / "old.log").write_bytes(b"\xff\xfe" + old.encode("utf-16-le"))
    assert nm2trt_inline("inspect", "--log", files / "old.log", "--require", "2").returncode == 0
    result = nm2trt_inline("inspect", "--log", files / "old.log", "--require", "3")
    assert result.returncode == 1
    assert "2 run a sparse kernel" in result.stdout
    assert "not taken for names of layers" in result.stdout


def test_counts_alone_are_a_lower_bound(files):
    counts = "[I] [TRT] (Sparsity) Found 39 layer(s) eligible to use sparse tactics\n"
    counts += "[I] [TRT] (Sparsity) Chose 12 layer(s) using sparse tactics\n"
    (files / "c.log").write_text(counts)
    result = nm2trt_inline("inspect", "--log", files / "c.log", "--require", "12")
    assert result.returncode == 0
    assert "the log: at least 39 found eligible, 12 chosen" in result.stdout
    assert nm2trt_inline("inspect", "--log", files / "c.log", "--require", "13").returncode == 1


def test_what_is_not_known_is_said_and_not_counted(files):
    (files / "names").write_text(json.dumps({"Layers": [f"layer_{index}" for index in range(840)], "Bindings": []}))
    result = nm2trt_inline("inspect", "--layers", files / "names")
    assert result.returncode == 0
    assert "840 layers, 0 with weights (840 do not show whether they have any)" in result.stdout
    shown = nm2trt_inline("inspect", "--layers", files / "names", "--all-layers").stdout
    assert "nothing shows whether it has weights" in shown


def test_a_file_without_an_option_is_taken_for_what_it_is(files):
    assert "the log: 2 found eligible" in nm2trt_inline("inspect", files / "b.log").stdout
    both = nm2trt_inline("inspect", files / "l.json", "--log", files / "b.log")
    assert "3 layers, 2 with weights" in both.stdout
    assert "the log: 2 found eligible" in both.stdout
    assert_one_error_line(nm2trt_inline("inspect", files / "b.log", "--log", files / "b.log"), 2, "--log names another")
    (files / "t").write_text('[{"computeMs": 1.0}]')
    assert_one_error_line(nm2trt_inline("inspect", files / "t"), 3, "is a file of times of single calls")


@pytest.mark.parametrize(
    ("option", "content", "words"),
    [
        ("--layers", [{"count": 5}, {"name": "a", "averageMs": 1}], "is a profile of layer times"),
        ("--layers", [{"computeMs": 1.0}], "is a file of times of single calls"),
        ("--layers", [{"Name": "NVIDIA A100", "COMPUTE_CAPABILITY_MAJOR": 8}], "is a list of GPUs"),
        ("--log", {"Layers": ["a"]}, "give it with --layers"),
        ("--log", [{"computeMs": 1.0}], "nm2trt profile reads it"),
    ],
)
def test_another_file_of_trtexec_is_refused_by_its_content(tmp_path, option, content, words):
    (tmp_path / "f.log").write_text(json.dumps(content))
    assert_one_error_line(nm2trt_inline("inspect", option, tmp_path / "f.log"), 3, words)


@requires(rtx=True)
def test_a_build_of_rtx_says_what_it_cannot_show(tmp_path):
    make_run(tmp_path / "run", "resnet8")
    build = export_run(tmp_path / "run", tmp_path / "b", precision="fp16", builder="tensorrt-rtx")
    result = nm2trt_inline("inspect", tmp_path / "b", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    engines = {engine["name"]: engine for engine in json.loads(result.stdout)["engines"]}
    assert set(engines) == {"control", "sparse"}
    layers = {name: layer for layer in engines["sparse"]["layers"] for name in layer["torch_names"]}
    # Every weight of the network is led back to, through the fusions of the compiler.
    assert set(layers) == {layer["name"] for layer in build.pattern["layers"]}
    eligible = {layer["name"] for layer in build.pattern["layers"] if layer["tensorrt"] == "eligible"}
    assert {name for name, layer in layers.items() if layer["eligible"]} == eligible
    assert {layer["chosen"] for name, layer in layers.items() if name in eligible} == {None}
    assert engines["sparse"]["totals"]["sparse"] == 0
    assert {layer["eligible"] for layer in engines["control"]["layers"]} == {False}
    text = nm2trt_inline("inspect", tmp_path / "b").stdout
    assert "sparsity not observable" in text
    assert "8 eligible; 0 run a sparse kernel" in text
    # build.json holds the same layers.
    recorded = {engine.variant: engine.layers for engine in BuildDocument.read(tmp_path / "b").engines}
    assert recorded["sparse"] == inspect_build(tmp_path / "b").engines[1].layers
    log = tmp_path / "b" / "sparse.log"
    log.write_text(log.read_text() + LOG)
    assert_one_error_line(nm2trt_inline("inspect", tmp_path / "b"), 3, "sparse.log", "changed")


def test_a_failed_engine_is_shown_as_none(tmp_path):
    build_folder(tmp_path / "b", small_network(seed=1), engine_error="no such operator")
    result = nm2trt_inline("inspect", tmp_path / "b")
    assert result.returncode == 0
    assert "no engine: no such operator" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--onnx", "m.onnx"), 2, "nothing to inspect"),
        (("b", "--log", "x.log"), 2, "leave out --log"),
        (("none",), 3, "no build.json"),
        (("--log", "none.log"), 3, "no such file"),
        (("--layers", "none.json"), 3, "no such file"),
        (("--log", "x.log", "--variant", "dense"), 2, "no variants"),
        (("b", "--variant", "tall"), 2, "choose from sparse"),
    ],
)
def test_mistakes_cost_one_line(tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    build_folder(tmp_path / "b", small_network(seed=1), engine_error="x")
    (tmp_path / "x.log").write_text("")
    assert_one_error_line(nm2trt_inline("inspect", *arguments), code, words)
