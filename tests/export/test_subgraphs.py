"""Conversion of graphs with bodies: Loop, Scan and If, nested, and with values of the graph around them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import value

from nm2trt.artifacts import BatchRange
from nm2trt.export import check_numerics, check_onnx, export_source, noise

RNG = np.random.default_rng(0)
node = helper.make_node


def weight(name, *shape):
    return numpy_helper.from_array((RNG.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), name)


def loop_body(nodes, *, name="body", initializers=(), scan_output=None):
    inputs = [value("i", [], TensorProto.INT64), value("c_in", [], TensorProto.BOOL), value("s_in", ["n", 8])]
    outputs = [value("c_out", [], TensorProto.BOOL), value("s_out", ["n", 8])]
    outputs += [value(scan_output, ["n", 8])] if scan_output else []
    keep = node("Identity", ["c_in"], ["c_out"], name="keep")
    return helper.make_graph([*nodes, keep], name, inputs, outputs, list(initializers))


def in_a_loop(body, *, outputs=("s",), extra=()):
    return [
        node("MatMul", ["x", "w1"], ["s0"], name="fc1"),
        node("Loop", ["trip", "cond", "s0"], list(outputs), body=body, name="loop"),
        *extra,
        node("MatMul", ["s", "w2"], ["y"], name="fc2"),
    ]


CONSTANTS = [
    numpy_helper.from_array(np.int64(3), "trip"),
    numpy_helper.from_array(np.bool_(True), "cond"),
    weight("w1", 8, 8),
    weight("w2", 8, 4),
    weight("lw", 8, 8),
]


def plain_loop():
    body = [node("MatMul", ["s_in", "lw"], ["m"], name="fc"), node("Tanh", ["m"], ["s_out"], name="th")]
    return in_a_loop(loop_body(body))


def loop_with_its_own_weight_and_scan_output():
    body = loop_body(
        [
            node("MatMul", ["s_in", "own"], ["m"], name="fc"),
            node("Tanh", ["m"], ["s_out"], name="th"),
            node("Identity", ["m"], ["each"], name="each"),
        ],
        initializers=[weight("own", 8, 8)],
        scan_output="each",
    )
    extra = [node("ReduceMean", ["all"], ["mean"], name="mean", axes=[0, 2], keepdims=0)]
    return [*in_a_loop(body, outputs=("s", "all"), extra=extra)]


def loop_that_reads_an_activation_and_an_input_of_the_graph():
    body = [
        node("Add", ["s_in", "s0"], ["a"], name="add"),
        node("Add", ["a", "x"], ["b"], name="add_x"),
        node("Tanh", ["b"], ["s_out"], name="th"),
    ]
    return in_a_loop(loop_body(body))


def if_in_a_loop():
    then = helper.make_graph(
        [node("MatMul", ["s_in", "lw"], ["t"], name="fc_then")], "then", [], [value("t", ["n", 8])]
    )
    other = helper.make_graph([node("Tanh", ["s0"], ["e"], name="th_else")], "else", [], [value("e", ["n", 8])])
    body = [
        node("If", ["c_in"], ["b"], then_branch=then, else_branch=other, name="if"),
        node("Tanh", ["b"], ["s_out"], name="th"),
    ]
    return in_a_loop(loop_body(body))


def loop_with_an_operator_that_is_float32_only():
    # Since NonMaxSuppression knows float32 alone, it needs casts within the body.
    body = [
        node("Tanh", ["s_in"], ["s_out"], name="th"),
        node("Slice", ["s_in", "zero", "one", "axis"], ["row"], name="row"),
        node("Reshape", ["row", "boxes_shape"], ["boxes"], name="boxes"),
        node("Reshape", ["row", "scores_shape"], ["scores"], name="scores"),
        node("NonMaxSuppression", ["boxes", "scores"], ["picked"], name="nms"),
    ]
    return in_a_loop(loop_body(body))


def scan():
    body = helper.make_graph(
        [
            node("Add", ["h_in", "x_t"], ["a"], name="add"),
            node("MatMul", ["a", "lw"], ["m"], name="fc"),
            node("Tanh", ["m"], ["h_out"], name="th"),
            node("Identity", ["h_out"], ["y_t"], name="y_t"),
        ],
        "body",
        [value("h_in", ["n", 8]), value("x_t", ["n", 8])],
        [value("h_out", ["n", 8]), value("y_t", ["n", 8])],
    )
    return [
        node("MatMul", ["x", "w1"], ["s0"], name="fc1"),
        node("Unsqueeze", ["x", "zero"], ["steps"], name="steps"),
        node("Scan", ["s0", "steps"], ["s", "each"], body=body, num_scan_inputs=1, name="scan"),
        node("MatMul", ["s", "w2"], ["y"], name="fc2"),
    ]


GRAPHS = [
    plain_loop,
    loop_with_its_own_weight_and_scan_output,
    loop_that_reads_an_activation_and_an_input_of_the_graph,
    if_in_a_loop,
    loop_with_an_operator_that_is_float32_only,
    scan,
]


def written(make, path, opset=17):
    constants = [
        *CONSTANTS,
        *(
            numpy_helper.from_array(np.array(values, np.int64), name)
            for name, values in (
                ("zero", [0]), ("one", [1]), ("axis", [0]), ("boxes_shape", [1, 2, 4]), ("scores_shape", [1, 4, 2])
            )
        ),
    ]  # fmt: skip
    graph = helper.make_graph(make(), "g", [value("x", ["n", 8])], [value("y", ["n", 4])], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("io_dtype", ["fp32", "same"])
@pytest.mark.parametrize("make", GRAPHS, ids=lambda make: make.__name__)
def test_bodies_are_converted_with_the_graph_around_them(make, io_dtype, opset, tmp_path):
    path = written(make, tmp_path / "m.onnx", opset)
    exported = export_source(path, precision="fp16", io_dtype=io_dtype)
    out = tmp_path / "out.onnx"
    exported.write(out)
    check_onnx(out)
    batch = BatchRange(min=1, opt=4, max=8)
    record = check_numerics(exported.reference, out, noise(exported.inputs, 8), batch, tolerance=1e-2, precision="fp16")
    assert record.passed, record


def test_a_loop_that_knows_no_bfloat16_keeps_its_edges_in_float32(tmp_path):
    path = written(plain_loop, tmp_path / "m.onnx", opset=15)  # Loop takes bfloat16 since opset 16
    exported = export_source(path, precision="bf16")
    exported.write(tmp_path / "out.onnx")
    check_onnx(tmp_path / "out.onnx")
    model = onnx.load(tmp_path / "out.onnx")
    loop = next(one for one in model.graph.node if one.op_type == "Loop")
    body = loop.attribute[0].g
    assert [one.type.tensor_type.elem_type for one in body.input][2] == TensorProto.FLOAT
    assert any(one.op_type == "Cast" for one in body.node)
