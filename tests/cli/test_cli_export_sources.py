"""`nm2trt export` of a user's own network and of others' ONNX, each as a command."""

import json
import os
import signal
import subprocess

import numpy as np
import onnx
import pytest
from helpers import assert_one_error_line, forked_python, nm2trt_inline, requires
from onnx import TensorProto, helper, numpy_helper
from run_folders import make_run
from safetensors.numpy import save_file

from nm2trt.artifacts import BuildDocument

MODULE = """
from torch import nn

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(16, 8), nn.Linear(4, 8)

    def forward(self, x, scale):
        return self.left(x) + self.right(scale)

def single(input_shape):
    return nn.Sequential(nn.Linear(input_shape[0], 8), nn.ReLU(), nn.Linear(8, 3))

def pair(input_shape):
    return Pair()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a user's module and checkpoints of its two networks."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own_networks_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    random = np.random.default_rng(0)
    shapes = {"0.weight": (8, 16), "0.bias": (8,), "2.weight": (3, 8), "2.bias": (3,)}
    pair = {"left.weight": (8, 16), "left.bias": (8,), "right.weight": (8, 4), "right.bias": (8,)}
    for name, tensors in (("single", shapes), ("pair", pair)):
        content = {key: random.standard_normal(shape).astype(np.float32) for key, shape in tensors.items()}
        save_file(content, folder / f"{name}.safetensors")
    return folder


def test_an_own_network_with_samples_external_data_and_its_own_io_type(own, tmp_path):
    x = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", input=x)
    result = nm2trt_inline(
        "export", own / "single.safetensors", "-o", tmp_path / "b", "--model", "own_networks_of_a_test:single",
        "--input-shape", "16", "--precision", "fp16", "--io-dtype", "same", "--samples", tmp_path / "samples.npz",
        "--external-data", "--builder", "none", "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    build = json.loads(result.stdout)
    assert build["numerics"]["inputs"] == "all 5 samples of samples.npz"
    assert [port["dtype"] for port in (*build["inputs"], *build["outputs"])] == ["float16", "float16"]
    assert {"model.onnx", "model.onnx.data"} <= set(build["files"])
    # What lies there is what was asked for, as another reader sees it.
    model = onnx.load(tmp_path / "b" / "model.onnx")
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16


def test_an_own_network_with_two_inputs(own, tmp_path):
    command = ("export", own / "pair.safetensors", "--model", "own_networks_of_a_test:pair", "--builder", "none")
    result = nm2trt_inline(*command, "-o", tmp_path / "b", "--input", "x=16", "--input", "scale=4")
    assert result.returncode == 0, result.stderr
    assert [(port.name, port.shape) for port in BuildDocument.read(tmp_path / "b").inputs] == [
        ("x", ("batch", 16)),
        ("scale", ("batch", 4)),
    ]
    wrong = nm2trt_inline(*command, "-o", tmp_path / "c", "--input", "x=16", "--input", "factor=4")
    assert_one_error_line(wrong, 2, "it takes no factor", "it needs scale")
    wrong = nm2trt_inline(*command, "-o", tmp_path / "c", "--input", "x=16", "--input-shape", "4")
    assert_one_error_line(wrong, 2, "--input-shape and --input: give one of them")
    wrong = nm2trt_inline(*command, "-o", tmp_path / "c", "--input", "x=16", "--input", "scale=4", "--data", "digits")
    assert_one_error_line(wrong, 3, "2 inputs", "--samples")
    assert not (tmp_path / "c").exists()


def write_onnx(path, nodes, inputs, outputs, opset=20):
    def port(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    domains = [helper.make_opsetid("", opset)]
    domains += [helper.make_opsetid(domain, 1) for domain in sorted({node.domain for node in nodes} - {""})]
    graph = helper.make_graph(nodes, "g", [port(*one) for one in inputs], [port(*one) for one in outputs])
    model = helper.make_model(graph, opset_imports=domains)
    model.ir_version = 10
    onnx.save(model, path)


def constant(name, values):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values, name))


W_8X16 = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)


@requires(rtx=True)
def test_weights_that_lie_in_constant_nodes_are_converted_and_built(tmp_path):
    nodes = [constant("w", W_8X16), helper.make_node("Gemm", ["x", "w"], ["y"], name="fc", transB=1)]
    write_onnx(tmp_path / "theirs.onnx", nodes, [("x", ["N", 16])], [("y", ["N", 8])])
    result = nm2trt_inline(
        "export", tmp_path / "theirs.onnx", "-o", tmp_path / "b", "--precision", "fp16", "--builder", "tensorrt-rtx"
    )
    assert result.returncode == 0, result.stderr
    build = BuildDocument.read(tmp_path / "b")
    assert [engine.error for engine in build.engines] == [None, None]
    model = onnx.load(tmp_path / "b" / "model.onnx")
    weights = [numpy_helper.to_array(one) for one in model.graph.initializer]
    assert [weight.dtype for weight in weights] == [np.float16]
    assert np.array_equal(weights[0], W_8X16.astype(np.float16))


@requires(rtx=True)
def test_a_quantized_network_of_calibrate_is_built_with_fp16_around(tmp_path):
    make_run(tmp_path / "run", "resnet8")
    plain = nm2trt_inline("export", tmp_path / "run", "-o", tmp_path / "plain", "--builder", "none")
    assert plain.returncode == 0, plain.stderr
    calibrated = nm2trt_inline(
        "calibrate", tmp_path / "plain" / "model.onnx", "--data", "digits", "-o", tmp_path / "q.onnx",
        "--builder", "none", "--samples", "64", "--held-out", "64",
    )  # fmt: skip
    assert calibrated.returncode in (0, 1), calibrated.stderr
    quantized = tmp_path / "q.onnx"
    before = [node.op_type for node in onnx.load(quantized).graph.node].count("QuantizeLinear")
    result = nm2trt_inline(
        "export", quantized, "-o", tmp_path / "b", "--precision", "fp16", "--data", "digits", "--sm", "80",
        "--builder", "tensorrt-rtx",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    build = BuildDocument.read(tmp_path / "b")
    assert build.precision == "int8+fp16"
    assert [(engine.sm, engine.error) for engine in build.engines] == [("80", None), ("80", None)]
    model = onnx.load(tmp_path / "b" / "model.onnx")
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == before > 0


@requires(rtx=True)
def test_operators_that_the_parser_lacks_are_all_named(tmp_path):
    nodes = [
        constant("w", W_8X16),
        helper.make_node("Gemm", ["x", "w"], ["h"], name="fc", transB=1),
        constant("s", np.array([1, 8, 8], np.int64)),
        helper.make_node("Reshape", ["h", "s"], ["h3"]),
        helper.make_node("Det", ["h3"], ["d"], name="the_det"),
        helper.make_node("Cast", ["h"], ["i"], to=TensorProto.INT32),
        helper.make_node("BitwiseNot", ["i"], ["j"], name="the_not"),
        helper.make_node("Cast", ["j"], ["z"], to=TensorProto.FLOAT),
    ]
    write_onnx(tmp_path / "theirs.onnx", nodes, [("x", [8, 16])], [("d", [1]), ("z", [8, 8])])
    result = nm2trt_inline("export", tmp_path / "theirs.onnx", "-o", tmp_path / "b", "--builder", "tensorrt-rtx")
    assert_one_error_line(result, 3, "the_det (Det)", "the_not (BitwiseNot)")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.onnx"]


@requires(rtx=True)
def test_operators_of_a_domain_of_ones_own_are_all_named(tmp_path):
    nodes = [
        helper.make_node("Mine", ["x"], ["h"], name="one", domain="my.ops"),
        helper.make_node("Yours", ["h"], ["y"], name="two", domain="my.ops"),
    ]
    write_onnx(tmp_path / "theirs.onnx", nodes, [("x", ["N", 16])], [("y", ["N", 16])])
    result = nm2trt_inline("export", tmp_path / "theirs.onnx", "-o", tmp_path / "b", "--builder", "tensorrt-rtx")
    assert_one_error_line(result, 3, "one (my.ops.Mine)", "two (my.ops.Yours)")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.onnx"]


@requires(rtx=True)
def test_a_dense_run_becomes_the_dense_arm_and_settings_are_refused_before_any_export(tmp_path, monkeypatch):
    make_run(tmp_path / "sparse", "mlp")
    make_run(tmp_path / "dense", "mlp", sparse=False)
    command = ("export", tmp_path / "sparse", "--precision", "fp16", "--builder", "tensorrt-rtx")
    result = nm2trt_inline(*command, "-o", tmp_path / "b", "--dense", tmp_path / "dense")
    assert result.returncode == 0, result.stderr
    build = BuildDocument.read(tmp_path / "b")
    assert [engine.variant for engine in build.engines] == ["dense", "control", "sparse"]
    assert nm2trt_inline(*command, "-o", tmp_path / "c", "--dense", tmp_path / "sparse").returncode == 3

    def never(*_arguments, **_options):
        raise AssertionError("exported before the settings were checked")

    monkeypatch.setattr("nm2trt.export.export_source", never)
    assert_one_error_line(nm2trt_inline(*command, "-o", tmp_path / "c", "--refittable"), 2, "--refittable")
    cache = ("--timing-cache", tmp_path / "t.cache")
    assert_one_error_line(nm2trt_inline(*command, "-o", tmp_path / "c", *cache), 2, "--timing-cache")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_export_leaves_no_build_and_is_not_in_the_way(tmp_path, number):
    """The signal comes when model.onnx is written and its outputs are about to be compared."""
    make_run(tmp_path / "run", "mlp")
    code = (
        "import os, sys, nm2trt.export\n"
        f"nm2trt.export.check_numerics = lambda *a, **k: os.kill(os.getpid(), {int(number)})\n"
        "from nm2trt.cli.main import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    target = tmp_path / "target"
    target.mkdir()
    command = ("export", tmp_path / "run", "-o", target / "b", "--builder", "none")
    (tmp_path / "killed.py").write_text(code)
    python, environment = forked_python(os.environ)
    killed = subprocess.run(
        [python, tmp_path / "killed.py", *map(str, command)],
        capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip
    assert killed.returncode != 0
    assert "Traceback" not in killed.stderr
    assert not (target / "b").exists()
    again = nm2trt_inline(*command)
    assert again.returncode == 0, again.stderr
    assert BuildDocument.read(target / "b").verdict == "pass"
