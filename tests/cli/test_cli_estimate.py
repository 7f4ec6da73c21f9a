"""`nm2trt estimate`: what it prints, its JSON, and one line for every mistake."""

import json

import numpy as np
import onnx
import pytest
from helpers import assert_one_error_line, nm2trt, nm2trt_inline
from onnx import TensorProto, helper, numpy_helper


def network(path, *, pruned=True, batch="batch"):
    """A 3x3 convolution with 256 channels, one with 6, and a classifier."""
    wide = np.ones((256, 256, 3, 3), np.float32)
    if pruned:
        wide[:, 1::4] = wide[:, 2::4] = 0
    weights = {
        "wide.weight": wide,
        "odd.weight": np.ones((256, 6, 1, 1), np.float32),
        "fc.weight": np.ones((256, 10), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "odd.weight"], ["a"], name="odd"),
        helper.make_node("Conv", ["a", "wide.weight"], ["b"], name="wide", pads=[1] * 4),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], name="pool"),
        helper.make_node("Flatten", ["d"], ["e"], name="flatten"),
        helper.make_node("MatMul", ["e", "fc.weight"], ["y"], name="fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 6, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    return path


def test_a_table_with_ranges_reasons_and_the_caveat(tmp_path):
    result = nm2trt("estimate", network(tmp_path / "m.onnx"), "--gpu", "a100-pcie-40gb", "--batch", 32)
    assert result.returncode == 0, result.stderr
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert "likely" in lines["wide"]
    assert "no: 6 input channels" in lines["odd"]
    assert "no: not 2:4-legal" in lines["fc"]
    assert "conv 3x3 8192 x 256 x 2304" in lines["wide"]
    assert "x [" in lines["speed-up"]
    assert "clocks and power, not sparsity" in lines["beside"]
    assert "estimate, nothing was measured" in result.stdout
    assert result.stderr == ""


def test_json_is_one_document_that_agrees_with_itself(tmp_path):
    result = nm2trt_inline("estimate", network(tmp_path / "m.onnx"), "--gpu", "l4", "--batch", 8, "--json")
    assert result.returncode == 0
    document = json.loads(result.stdout)
    assert document["schema"] == "nm2trt.estimate/1"
    assert document["measured"] == "estimate, nothing was measured"
    layers = {layer["name"]: layer for layer in document["layers"]}
    assert list(layers) == ["odd", "wide", "pool", "fc"]
    assert layers["wide"]["flops"] == 2 * 8 * 256 * 256 * 256 * 9
    assert layers["odd"]["sparse_us"] is None
    assert sum(layer["share"] for layer in layers.values()) == pytest.approx(1, abs=1e-3)
    assert document["eligible"] == 1
    assert document["outside_data"][0] == "NVIDIA L4"
    assert document["speedup"]["low"] <= document["speedup"]["value"] <= document["speedup"]["high"]
    assert document["gpu_source"]
    assert document["constants"]["layers"]


def test_a_network_that_is_not_pruned_yet(tmp_path):
    path = network(tmp_path / "m.onnx", pruned=False)
    plain = nm2trt_inline("estimate", path, "--gpu", "a30", "--batch", 32)
    assert "speed-up     1.00x [1.00, 1.00]" in plain.stdout
    assert "--assume 2:4 asks" in plain.stdout
    assumed = json.loads(
        nm2trt_inline("estimate", path, "--gpu", "a30", "--batch", 32, "--assume", "2:4", "--json").stdout
    )
    assert assumed["speedup"]["value"] > 1
    assert assumed["assumed"] == "2:4"


def test_batch_and_precision_of_a_build_folder(tmp_path, monkeypatch):
    from nm2trt.artifacts.build import BatchRange
    from nm2trt.pipelines import estimate

    network(tmp_path / "model.onnx")
    (tmp_path / "build.json").write_text("{}")

    class Built:
        precision, batch = "int8+fp16", BatchRange(min=1, opt=16, max=32)

        @classmethod
        def read(cls, _folder):
            return cls()

    monkeypatch.setattr(estimate, "BuildDocument", Built)
    document = json.loads(nm2trt_inline("estimate", tmp_path, "--gpu", "a30", "--json").stdout)
    assert document["inputs"] == {"x": [16, 6, 16, 16]}
    assert document["precision"] == "fp16"


def test_gpus_are_listed_without_a_model():
    result = nm2trt_inline("estimate", "--list-gpus")
    assert result.returncode == 0
    assert "a100-pcie-40gb" in result.stdout
    assert len(result.stdout.splitlines()) >= 14


def test_another_gpu_from_a_file(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'name = "Mine"\nsm = 80\nsms = 54\nclock_mhz = 1410\nl2_mib = 20\nbandwidth_gb_s = 800\npower_w = 150\n'
        "dense = { fp16 = 156 }\nsparse = { fp16 = 312 }\nsource = 'half an A100'\n"
    )
    path = network(tmp_path / "m.onnx")
    arguments = ("estimate", path, "--batch", 32, "--json")
    mine = json.loads(nm2trt_inline(*arguments, "--gpu-file", tmp_path / "mine.toml").stdout)
    whole = json.loads(nm2trt_inline(*arguments, "--gpu", "a100-pcie-80gb").stdout)
    assert mine["gpu_name"] == "Mine"
    assert mine["dense_ms"]["value"] > whole["dense_ms"]["value"]
    assert mine["outside_data"] == ["Mine"]
    refused = nm2trt_inline(*arguments, "--gpu-file", tmp_path / "mine.toml", "--precision", "int8")
    assert_one_error_line(refused, 2, "Mine has no int8 peak", "fp16")


@pytest.mark.parametrize(
    ("arguments", "code", "fragments"),
    [
        ((), 2, ["no GPU named", "a100-pcie-40gb"]),
        (("--gpu", "a100"), 2, ["unknown GPU 'a100'", "a100-pcie-40gb", "--gpu-file"]),
        (("--gpu", "l4", "--gpu-file", "f"), 2, ["both --gpu and --gpu-file"]),
        (("--gpu-file", "nowhere.toml"), 3, ["no such file"]),
        (("--gpu", "l4"), 2, ["x=batchx6x16x16", "--batch N"]),
        (("--gpu", "l4", "--shape", "x"), 2, ["NAME=1x3x224x224"]),
        (("--gpu", "l4", "--shape", "x=1x-2"), 2, ["NAME=1x3x224x224"]),
        (("--gpu", "l4", "--shape", "x=1x7x16x16"), 2, ["fixed at 6, not 7"]),
        (("--gpu", "l4", "--batch", "1", "--assume", "4:8"), 2, ["--assume 4:8", "2:4"]),
        (("--gpu", "l4", "--batch", "1", "--dense-layers", "zzz"), 2, ["no layer with weights matches"]),
        (("--gpu", "a30", "--batch", "1", "--precision", "fp8"), 2, ["A30 has no fp8"]),
    ],
)
def test_mistakes_cost_one_line(arguments, code, fragments, tmp_path):
    result = nm2trt_inline("estimate", network(tmp_path / "m.onnx"), *arguments)
    assert_one_error_line(result, code, *fragments)


def test_broken_models_cost_one_line(tmp_path):
    for name, content in (("empty.onnx", b""), ("text.onnx", b"hello"), ("cut.onnx", b"\x08\x0a\x12\xff")):
        (tmp_path / name).write_bytes(content)
        assert_one_error_line(nm2trt_inline("estimate", tmp_path / name, "--gpu", "l4"), 3, name)
    assert_one_error_line(nm2trt_inline("estimate", tmp_path / "none.onnx", "--gpu", "l4"), 3, "no such file")


def test_names_cannot_steer_the_terminal(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"], name="a\x1b[31m\nb")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    onnx.save(helper.make_model(graph, ir_version=10), str(tmp_path / "m.onnx"))
    result = nm2trt_inline("estimate", tmp_path / "m.onnx", "--gpu", "l4")
    assert result.returncode == 0
    assert "\x1b" not in result.stdout
    assert r"a\x1b[31m\nb" in result.stdout
