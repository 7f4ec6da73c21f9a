"""Constants behind operators that are not read: each is named, none twice, and --strict fails on them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nm2trt.layers import open_layers
from nm2trt.pattern import NMPattern, mask
from nm2trt.verify import verify_path

RNG = np.random.default_rng(0)
MS = "com.microsoft"


def node(op_type, inputs, outputs=("h",), **attributes):
    return helper.make_node(op_type, list(inputs), list(outputs), name=f"n_{op_type}", **attributes)


def constant(name, shape, dtype=np.float32):
    values = RNG.standard_normal(shape) if np.dtype(dtype).kind == "f" else RNG.integers(1, 100, shape)
    return numpy_helper.from_array(np.asarray(values).astype(dtype), name)


def write(tmp_path, nodes, initializers, sparse=(), functions=()):
    weight = RNG.standard_normal((16, 8)).astype(np.float32)
    last = numpy_helper.from_array(weight * mask(weight, NMPattern(2, 4), 0), "last")
    graph = helper.make_graph(
        [*nodes, helper.make_node("MatMul", ["h", "last"], ["y"], name="last")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [*initializers, last],
        sparse_initializer=sparse,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 21), (MS, 1), ("a.b", 1), ("local", 1))]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    return path


def unread(path):
    return {layer.name: layer.reason.code for layer in open_layers(path) if layer.not_checked}


OPERATORS = {
    "LSTM": (node("LSTM", ["x", "w", "r", "b"], hidden_size=8), {"w": (1, 32, 16), "r": (1, 32, 8)}, "recurrent"),
    "GRU": (node("GRU", ["x", "w", "r"], hidden_size=8), {"w": (1, 24, 16), "r": (1, 24, 8)}, "recurrent"),
    "RNN": (node("RNN", ["x", "w", "r"], hidden_size=8), {"w": (1, 8, 16), "r": (1, 8, 8)}, "recurrent"),
    "Einsum": (node("Einsum", ["x", "w"], equation="bi,io->bo"), {"w": (16, 16)}, "einsum"),
    "DeformConv": (node("DeformConv", ["x", "w", "o"]), {"w": (8, 8, 3, 3)}, "deformable"),
    "FusedMatMul": (node("FusedMatMul", ["x", "w"], domain=MS), {"w": (16, 16)}, "runtime-operator"),
    "FusedGemm": (node("FusedGemm", ["x", "w", "b"], domain=MS), {"w": (16, 16)}, "runtime-operator"),
    "FusedConv": (node("FusedConv", ["x", "w"], domain=MS), {"w": (16, 8, 3, 3)}, "runtime-operator"),
    "Attention": (node("Attention", ["x", "w", "b"], num_heads=2, domain=MS), {"w": (16, 48)}, "attention-operator"),
    "custom": (node("Mix", ["x", "w"], domain="a.b"), {"w": (16, 16)}, "custom-operator"),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_float_operators(name, tmp_path):
    made, shapes, code = OPERATORS[name]
    initializers = [constant(key, shape) for key, shape in shapes.items()] + [constant("b", (16,))]
    path = write(tmp_path, [made], initializers)
    assert unread(path) == dict.fromkeys(shapes, code)
    document = verify_path(path, strict=True)
    assert (document.verdict, document.totals.not_checked) == ("fail", len(shapes))
    assert document.totals.weights_not_checked == sum(np.prod(shape) for shape in shapes.values())
    found = {layer.name: layer for layer in document.layers if layer.verdict == "not-checked"}
    assert {layer.reason.code for layer in found.values()} == {code}
    assert {layer.node for layer in found.values()} == {made.name}
    assert verify_path(path).verdict == "pass"
    assert verify_path(path, strict=True, exclude=list(shapes)).verdict == "pass"


INTEGERS = {
    "QLinearConv": ["x", "s", "z", "w", "s", "z", "s", "z"],
    "QLinearMatMul": ["x", "s", "z", "w", "s", "z", "s", "z"],
    "MatMulInteger": ["x", "w", "z", "z"],
    "ConvInteger": ["x", "w", "z", "z"],
}


@pytest.mark.parametrize("op_type", INTEGERS)
def test_operators_of_integers(op_type, tmp_path):
    shape = (16, 16, 1, 1) if "Conv" in op_type else (16, 16)
    initializers = [constant("w", shape, np.int8), constant("s", ()), constant("z", (), np.int8)]
    path = write(tmp_path, [node(op_type, INTEGERS[op_type])], initializers)
    assert unread(path) == {"w": "quantized-operator"}


@pytest.mark.parametrize("op_type", ["MatMulNBits", "MatMulBnb4"])
def test_packed_operators(op_type, tmp_path):
    packed = [constant("w", (16, 2, 8), np.uint8), constant("s", (16, 2))]
    path = write(tmp_path, [node(op_type, ["x", "w", "s"], domain=MS)], packed)
    assert unread(path) == {"w": "packed-operator"}


def test_masks_and_residuals_of_fused_operators_are_no_weights(tmp_path):
    fused = node("FusedConv", ["x", "w", "", "z"], domain=MS)
    assert unread(write(tmp_path, [fused], [constant("w", (16, 8, 3, 3)), constant("z", (1, 16, 4, 4))])) == {
        "w": "runtime-operator"
    }
    attention = node("Attention", ["x", "w", "", "m"], num_heads=2, domain=MS)
    assert set(unread(write(tmp_path, [attention], [constant("w", (16, 48)), constant("m", (1, 16))]))) == {"w"}
    embed = node("EmbedLayerNormalization", ["x", "", "t", "p"], domain=MS)
    path = write(tmp_path, [embed], [constant("t", (50, 16)), constant("p", (9, 16))])
    assert unread(path) == {}
    assert verify_path(path, strict=True).verdict == "pass"


def test_weights_made_of_constants(tmp_path):
    made = [
        helper.make_node("Mul", ["w", "m"], ["wm"]),
        node("MatMul", ["x", "wm"]),
    ]
    path = write(tmp_path, made, [constant("w", (16, 16)), constant("m", (16, 16))])
    assert unread(path) == {"w": "unfolded", "m": "unfolded"}
    quantized = [helper.make_node("DequantizeLinear", ["w", "s"], ["d"], domain=MS), node("MatMul", ["x", "d"])]
    assert unread(write(tmp_path, quantized, [constant("w", (16, 16), np.int8), constant("s", ())])) == {
        "w": "unfolded"
    }


def test_gates_put_in_another_order(tmp_path):
    """As torch exports an LSTM cell: the weight is cut into gates, which are joined in ONNX's order."""
    parts = [helper.make_node("Slice", ["w", f"s{i}", f"e{i}"], [f"p{i}"]) for i in range(2)]
    join = helper.make_node("Concat", ["p1", "p0"], ["c"], axis=0)
    made = [
        *parts,
        join,
        helper.make_node("Unsqueeze", ["c", "axes"], ["u"]),
        node("LSTM", ["x", "u", "u"], hidden_size=4),
    ]
    ends = {"s0": [0], "e0": [8], "s1": [8], "e1": [16], "axes": [0]}
    integers = [numpy_helper.from_array(np.array(value), name) for name, value in ends.items()]
    assert unread(write(tmp_path, made, [constant("w", (16, 4)), *integers])) == {"w": "recurrent"}


def test_modulated_convolutions_and_tables_added_to_activations(tmp_path):
    modulated = [helper.make_node("Mul", ["w", "x"], ["wm"]), node("Conv", ["x", "wm"])]
    assert unread(write(tmp_path, modulated, [constant("w", (8, 8, 3, 3))])) == {"w": "modulated"}
    # Rotary and position tables reach a matrix product, too, and are no weights of it.
    rotary = [helper.make_node("Mul", ["x", "cos"], ["q"]), node("MatMul", ["q", "x"])]
    assert unread(write(tmp_path, rotary, [constant("cos", (16, 16))])) == {}


def test_a_bank_of_which_the_data_choose_a_matrix(tmp_path):
    chosen = [helper.make_node("Gather", ["bank", "x"], ["one"]), node("MatMul", ["x", "one"])]
    assert unread(write(tmp_path, chosen, [constant("bank", (4, 16, 16))])) == {"bank": "modulated"}
    # Positions that queries are multiplied by are a table.
    assert unread(write(tmp_path, chosen, [constant("bank", (16, 16))])) == {}


def test_tables_and_index_constants_are_no_products(tmp_path):
    made = [
        helper.make_node("Gather", ["table", "i"], ["t"]),
        helper.make_node("Add", ["x", "pos"], ["p"]),
        helper.make_node("SkipLayerNormalization", ["p", "skip"], ["h"], domain=MS),
    ]
    initializers = [constant("table", (9, 16)), constant("pos", (1, 16)), constant("skip", (1, 16))]
    assert unread(write(tmp_path, made, [*initializers, constant("i", (2, 2), np.int64)])) == {}


def test_sparse_initializers(tmp_path):
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [2], [0, 5])
    sparse = helper.make_sparse_tensor(values, indices, [16, 16])
    assert unread(write(tmp_path, [node("MatMul", ["x", "w"])], [], sparse=[sparse])) == {"w": "sparse-initializer"}
    inside = [helper.make_node("Constant", [], ["w"], sparse_value=sparse), node("Gemm", ["x", "w"])]
    assert unread(write(tmp_path, inside, [])) == {"w": "sparse-initializer"}


def value(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


@pytest.mark.parametrize("op_type", ["Loop", "Scan"])
def test_weights_inside_loops(op_type, tmp_path):
    heads = ["iteration", "go"] if op_type == "Loop" else []
    body_inputs = [value(name) for name in (*heads, "s", "carried")]
    body_nodes = [
        helper.make_node("LSTM", ["s", "inner", "inner"], ["t"], hidden_size=8, name="rnn"),
        helper.make_node("MatMul", ["t", "carried"], ["u"], name="mm"),
        helper.make_node("Identity", ["carried"], ["kept"]),
    ]
    outputs = [value(name) for name in ((*heads[1:], "u", "kept"))]
    body = helper.make_graph(body_nodes, "body", body_inputs, outputs, [constant("inner", (1, 32, 16))])
    attributes = {"body": body} if op_type == "Loop" else {"body": body, "num_scan_inputs": 0}
    inputs = [*(["n", "go0"] if heads else []), "x", "w"]
    made = helper.make_node(op_type, inputs, ["h", "w_out"], name="loop", **attributes)
    initializers = [constant("w", (16, 16)), numpy_helper.from_array(np.array(3), "n")]
    path = write(tmp_path, [made], [*initializers, numpy_helper.from_array(np.array(True), "go0")])
    assert unread(path) == {"inner": "recurrent", "w": "loop-input"}


def test_weights_inside_branches_and_functions(tmp_path):
    branch = helper.make_graph([node("Einsum", ["x", "w"], ["o"], equation="ij,jk->ik")], "b", [], [value("o")])
    body = [helper.make_node("LSTM", ["a", "b", "c"], ["d"], hidden_size=8, name="rnn")]
    function = helper.make_function("local", "Step", ["a", "b", "c"], ["d"], body, [helper.make_opsetid("", 21)])
    made = [
        helper.make_node("If", ["flag"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Step", ["i", "f", "r"], ["h"], domain="local", name="call"),
    ]
    initializers = [constant("w", (16, 16)), constant("f", (1, 32, 16)), constant("r", (1, 32, 8))]
    path = write(tmp_path, made, [*initializers, numpy_helper.from_array(np.array(True), "flag")], functions=[function])
    assert unread(path) == {"w": "einsum", "f": "recurrent", "r": "recurrent"}


def test_nothing_to_check_is_explained(tmp_path):
    path = write(tmp_path, [node("Einsum", ["x", "w"], equation="bi,io->bo")], [constant("w", (16, 16))])
    model = onnx.load(path)
    del model.graph.node[1]
    onnx.save(model, path)
    assert any("1 tensor not checked, first w (Einsum)" in problem for problem in verify_path(path).problems)
