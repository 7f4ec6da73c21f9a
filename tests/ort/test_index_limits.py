"""Bounds of a graph's integer inputs, each against what ONNX Runtime itself takes."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from nm2trt.ort.index_limits import index_limits

ROWS = 7
INT32, INT64, FLOAT = TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT


def graph_of(nodes, *, kind=INT64, table=None, constants=(), domain=""):
    """ids [N, 3] and whatever the nodes make of it; the output is "y"."""
    table = np.zeros((ROWS, 2), np.float32) if table is None else table
    tensors = [numpy_helper.from_array(table, "table"), *(numpy_helper.from_array(v, k) for k, v in constants)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", kind, ["N", 3])],
        [helper.make_empty_tensor_value_info("y")],
        tensors,
    )
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def gather(index="ids", **attributes):
    return helper.make_node("Gather", ["table", index], ["y"], **attributes)


def scalar(value):
    return np.array(value, np.int64)


CASES = {
    "plain": ([gather()], {}, ROWS),
    "other axis": ([gather(axis=1)], {}, 2),
    "cast": ([helper.make_node("Cast", ["ids"], ["c"], to=INT64), gather("c")], {"kind": INT32}, ROWS),
    "through shapes": (
        [
            helper.make_node("Unsqueeze", ["ids", "one"], ["u"]),
            helper.make_node("Transpose", ["u"], ["t"], perm=[1, 2, 0]),
            gather("t"),
        ],
        {"constants": [("one", np.array([1], np.int64))]},
        ROWS,
    ),
    "offset": (
        [helper.make_node("Add", ["ids", "two"], ["s"]), gather("s")], {"constants": [("two", scalar(2))]}, ROWS - 2,
    ),
    "two tables": (
        [helper.make_node("Gather", ["small", "ids"], ["z"]), gather()],
        {"constants": [("small", np.zeros((4, 2), np.float32))]},
        4,
    ),
    "table behind a cast": (
        [
            helper.make_node("Cast", ["half"], ["full"], to=FLOAT),
            helper.make_node("Gather", ["full", "ids"], ["y"]),
        ],
        {"constants": [("half", np.zeros((5, 2), np.float16))]},
        5,
    ),
    "dequantized table": (
        [
            helper.make_node("DequantizeLinear", ["q", "scale"], ["full"]),
            helper.make_node("Gather", ["full", "ids"], ["y"]),
        ],
        {"constants": [("q", np.zeros((6, 2), np.int8)), ("scale", np.float32(0.5))]},
        6,
    ),
    "constant node": (
        [
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.zeros((3, 2), np.float32))),
            helper.make_node("Gather", ["c", "ids"], ["y"]),
        ],
        {},
        3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_last_row_is_taken_and_the_next_refused(case):
    nodes, options, limit = CASES[case]
    model = graph_of(nodes, **options)
    assert index_limits(ir.from_proto(model)) == {"ids": limit}
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    kind = np.int32 if options.get("kind") == INT32 else np.int64
    session.run(None, {"ids": np.full((1, 3), limit - 1, kind)})
    with pytest.raises(Exception, match=r"out of (data )?bounds"):
        session.run(None, {"ids": np.full((1, 3), limit, kind)})


def test_what_indexes_nothing_has_no_bound():
    model = graph_of([helper.make_node("Cast", ["ids"], ["y"], to=FLOAT)])
    assert index_limits(ir.from_proto(model)) == {}
    # The ids are the table here, not the index.
    model = graph_of(
        [helper.make_node("Gather", ["ids", "place"], ["y"], axis=1)], constants=[("place", np.array([0], np.int64))]
    )
    assert index_limits(ir.from_proto(model)) == {}


def test_positions_and_words_have_their_own():
    tables = [numpy_helper.from_array(np.zeros((rows, 2), np.float32), name) for name, rows in (("w", 9), ("p", 4))]
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["a"]),
        helper.make_node("Gather", ["p", "positions"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(name, INT64, ["N", 3]) for name in ("ids", "positions")]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["N", 3, 2])]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, tables), ir_version=8)
    onnx.checker.check_model(model)
    assert index_limits(ir.from_proto(model)) == {"ids": 9, "positions": 4}
