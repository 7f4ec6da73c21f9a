"""A newer opset computes what the old file computes: ONNX Runtime runs both."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from nm2trt.onnx_tools.node_names import name_nodes
from nm2trt.onnx_tools.opset import raise_opset

node = helper.make_node
X = np.random.default_rng(0).standard_normal((2, 3, 6, 7)).astype(np.float32)


def model(nodes, opset, initializers=()):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", onnx.TensorProto.FLOAT, ["n", 3, 6, 7])], [info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in initializers],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=5)


def run(proto):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


@pytest.mark.parametrize("scale", [2.0, 1.5, 0.5])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(("op", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_old_resizes_keep_their_coordinates(op, opset, mode, scale, tmp_path):
    if op == "Upsample" and scale < 1:
        pytest.skip("Upsample only makes larger")
    scales = np.array([1, 1, scale, scale], np.float32)
    old = model([node(op, ["x", "s"], ["y"], mode=mode, name="up")], opset, [("s", scales)])
    raised = raise_opset(old, 13, tmp_path)
    assert raised.opset_import[0].version == 13
    assert [one.name for one in raised.graph.node if one.op_type == "Resize"] == ["up"]
    assert np.abs(run(old) - run(raised)).max() < 1e-6


@pytest.mark.parametrize(
    ("nodes", "opset"),
    [
        ([node("Softmax", ["x"], ["y"], axis=1, name="s")], 11),
        ([node("LogSoftmax", ["x"], ["y"], axis=2, name="s")], 9),
        ([node("Clip", ["x"], ["y"], min=-0.5, max=0.25, name="c")], 9),
        ([node("Squeeze", ["u"], ["y"], axes=[1], name="s"), node("Unsqueeze", ["x"], ["u"], axes=[1])][::-1], 11),
        ([node("Dropout", ["x"], ["y"], ratio=0.3, name="d")], 10),
        ([node("Pad", ["x"], ["y"], pads=[0, 0, 1, 2, 0, 0, 3, 4], value=0.5, name="p")], 9),
    ],
)
def test_other_operators_compute_the_same(nodes, opset, tmp_path):
    old = model(nodes, opset)
    assert np.abs(run(old) - run(raise_opset(old, 13, tmp_path))).max() < 1e-6


def test_a_new_enough_graph_is_left_alone(tmp_path):
    proto = model([node("Relu", ["x"], ["y"])], 17)
    assert raise_opset(proto, 13, tmp_path) is proto


def test_nameless_nodes_get_their_outputs_names_and_others_keep_theirs():
    graph = ir.from_proto(
        model([node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b"], name="a"), node("Abs", ["b"], ["y"])], 17)
    )
    assert name_nodes(graph) == 2
    assert [one.name for one in graph.graph] == ["a_1", "a", "y"]
    assert name_nodes(graph) == 0
