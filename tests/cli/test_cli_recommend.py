"""`nm2trt recommend`: the ranking, the lists that train and prune take, and its exit codes."""

import json
import re
import shlex

import numpy as np
import onnx
import pytest
from helpers import assert_one_error_line, nm2trt_inline
from onnx import TensorProto, helper, numpy_helper

CHANNELS = (16, 64, 256, 256)


@pytest.fixture
def model(tmp_path):
    nodes, weights, x = [], [], "x"
    for index in range(3):
        name = f"body.{index}"
        w = np.random.default_rng(index).standard_normal((CHANNELS[index + 1], CHANNELS[index], 3, 3))
        weights.append(numpy_helper.from_array(w.astype(np.float32), f"{name}.weight"))
        nodes.append(helper.make_node("Conv", [x, f"{name}.weight"], [f"{name}.y"], name=name, pads=[1] * 4))
        x = f"{name}.y"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 28, 28])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", 256, 28, 28])],
        weights,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(tmp_path / "m.onnx")
    )
    return tmp_path / "m.onnx"


BOARD = ("--gpu", "a100-pcie-80gb", "--batch", 32)


def test_the_largest_saving_comes_first(model):
    result = nm2trt_inline("recommend", model, *BOARD, "--target", "1.1")
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if re.match(r" +\d+ +\d+ ", line)]
    assert rows[0][2] == "body.2"
    assert rows[0][-2:] == ["<-", "plan"]
    assert "estimate, nothing was measured" in result.stdout


def test_the_plan_prunes_what_it_says(model, tmp_path):
    document = json.loads(nm2trt_inline("recommend", model, *BOARD, "--target", "1.1", "--json").stdout)
    assert document["schema"] == "nm2trt.plan/1"
    assert document["sparse"] == ["body.2.weight"]
    assert "body.1.weight" in document["dense"]
    assert "--exclude=body.1" in document["train_arguments"]
    # The tensors' names are those that prune takes, and what comes out is estimated at what was promised.
    pruned = nm2trt_inline("prune", model, *document["prune_arguments"], "-o", tmp_path / "p.onnx", "--json")
    assert pruned.returncode == 0, pruned.stderr
    found = json.loads(nm2trt_inline("estimate", tmp_path / "p.onnx", *BOARD, "--json").stdout)
    eligible = [layer["weight"] for layer in found["layers"] if layer["tensorrt"] == "eligible"]
    assert eligible == document["sparse"]
    assert found["speedup"]["value"] == pytest.approx(document["speedup"]["value"])


def test_the_lines_are_shell_words(model):
    result = nm2trt_inline("recommend", model, *BOARD, "--target", "1.1")
    text = result.stdout.replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if "nm2trt prune" in line]
    assert "--exclude=body.1.weight" in shlex.split(line)


def test_sensitivity_is_weighed_against_time(model, tmp_path):
    (tmp_path / "s.csv").write_text("layer,cost\nbody.2,1000\nbody.1,1\n")
    document = json.loads(
        nm2trt_inline("recommend", model, *BOARD, "--sensitivity", tmp_path / "s.csv", "--json").stdout
    )
    assert document["steps"][-1]["added"] == "body.2.weight"
    assert document["steps"][-1]["sensitivity"] == 1000


def test_out_of_reach_is_a_bad_verdict(model):
    result = nm2trt_inline("recommend", model, *BOARD, "--target", "1.9")
    assert result.returncode == 1
    assert "out of reach" in result.stdout


def test_nothing_to_gain_is_a_bad_verdict(model):
    result = nm2trt_inline("recommend", model, *BOARD, "--precision", "fp32")
    assert result.returncode == 1
    assert "nothing here is worth sparsifying" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "fragments"),
    [
        (("--target", "0.5"), 2, ["--target 0.5 is no speed-up"]),
        (("--target", "nan"), 2, ["no speed-up"]),
        (("--sensitivity", "nowhere.json"), 3, ["nowhere.json", "no such file"]),
    ],
)
def test_mistakes_cost_one_line(arguments, code, fragments, model):
    assert_one_error_line(nm2trt_inline("recommend", model, *BOARD, *arguments), code, *fragments)


def test_sensitivities_of_another_network_are_refused(model, tmp_path):
    (tmp_path / "s.json").write_text('{"other": 1}')
    result = nm2trt_inline("recommend", model, *BOARD, "--sensitivity", tmp_path / "s.json")
    assert_one_error_line(result, 2, "none of its 1 names")
