"""Which layers of a graph make its scores, whatever lies behind them, and which layers of a checkpoint by name."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from nm2trt.layers import open_layers
from nm2trt.pattern import NMPattern
from nm2trt.prune import Request, prune_path
from nm2trt.prune.naming import classifiers_of

TWO_FOUR = Request(pattern=NMPattern(2, 4))
RNG = np.random.default_rng(0)


def node(op_type, inputs, outputs, **attributes):
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def constant(name, value):
    return numpy_helper.from_array(np.asarray(value), name)


def weight(name, *shape):
    return constant(name, RNG.standard_normal(shape).astype(np.float32))


def value(name, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, None)


def pruned(tmp_path, nodes, initializers, inputs="x", outputs="y"):
    """Weight -> the pattern that it was pruned to."""
    kinds = {"flag": TensorProto.BOOL}
    graph = helper.make_graph(
        nodes,
        "g",
        [value(name, kinds.get(name, TensorProto.FLOAT)) for name in inputs.split()],
        [value(name) for name in outputs.split()],
        initializers,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 17), ("a.b", 1))]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "a.onnx")
    document = prune_path(tmp_path / "a.onnx", tmp_path / "b.onnx", TWO_FOUR, force=True)
    return {layer.name: layer.pattern for layer in document.layers}


TRUNK = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r scores", "l")]
SCALE = constant("a", np.float32(0.5))
TAILS = {
    "relu and softmax": ([node("Relu", "l", "z"), node("Softmax", "z", "y")], []),
    "dropout": ([node("Dropout", "l", "y")], []),
    "temperature": ([node("Mul", "l a", "y")], [SCALE]),
    "temperature input": ([node("Div", "l t", "y")], []),
    "top k": ([node("TopK", "l k", "y i")], [constant("k", np.array([3]))]),
    "log of softmax": ([node("Softmax", "l", "s"), node("Log", "s", "y")], []),
    "log softmax": ([node("LogSoftmax", "l", "y")], []),
    "sigmoid": ([node("Sigmoid", "l", "y")], []),
    "argmax": ([node("ArgMax", "l", "y", axis=1)], []),
    "cast": ([node("Cast", "l", "y", to=10)], []),
    "clip": ([node("Clip", "l a", "y")], [SCALE]),
    "from one": ([node("Sub", "a l", "y")], [SCALE]),
    "reshape": ([node("Reshape", "l s", "y")], [constant("s", np.array([-1, 2, 4]))]),
    "softmax by hand": (
        [node("Exp", "l", "e"), node("ReduceSum", "e ax", "s", keepdims=1), node("Div", "e s", "y")],
        [constant("ax", np.array([1]))],
    ),
    "unit length": ([node("ReduceL2", "l", "s", axes=[1]), node("Div", "l s", "y")], []),
    "threshold": ([node("Greater", "l a", "g"), node("Where", "g l a", "y")], [SCALE]),
    "layer norm": ([node("LayerNormalization", "l b", "y")], [weight("b", 8)]),
    "chosen classes": ([node("Gather", "l i", "y", axis=1)], [constant("i", np.array([1, 2]))]),
    "Q/DQ": ([node("QuantizeLinear", "l a", "q"), node("DequantizeLinear", "q a", "y")], [SCALE]),
    "bias on the left": ([node("Add", "b l", "q"), node("LeakyRelu", "q", "y")], [weight("b", 8)]),
    "unknown operator": ([helper.make_node("Post", ["l"], ["y"], domain="a.b")], []),
}


@pytest.mark.parametrize("tail", TAILS)
def test_whatever_lies_behind_the_scores(tail, tmp_path):
    nodes, initializers = TAILS[tail]
    weights = [weight("w", 16, 32), weight("scores", 32, 8)]
    inputs = "x t" if "input" in tail else "x"
    assert pruned(tmp_path, [*TRUNK, *nodes], [*weights, *initializers], inputs) == {"w": "2:4", "scores": None}
    named = Request(pattern=TWO_FOUR.pattern, layer_patterns={"scores": NMPattern(1, 4)})
    document = prune_path(tmp_path / "a.onnx", tmp_path / "c.onnx", named)
    assert {layer.name: layer.pattern for layer in document.layers} == {"w": "2:4", "scores": "1:4"}


def test_several_heads(tmp_path):
    weights = [weight("w", 16, 32), weight("scores", 32, 8), weight("boxes", 32, 4), weight("aux", 32, 8)]
    heads = [
        node("MatMul", "r boxes", "b"),
        node("Sigmoid", "l", "p"),
        node("Concat", "p b", "y", axis=1),
        node("MatMul", "r aux", "z"),
    ]
    found = pruned(tmp_path, [*TRUNK, *heads], weights, outputs="y z")
    assert found == {"w": "2:4", "scores": None, "boxes": None, "aux": None}
    ensemble = [node("MatMul", "r aux", "m"), node("Add", "l m", "s"), node("Mul", "s a", "y")]
    found = pruned(tmp_path, [*TRUNK, *ensemble], [*weights[:2], weights[3], SCALE])
    assert found == {"w": "2:4", "scores": None, "aux": None}


@pytest.mark.parametrize("tail", ["ReduceMean", "AveragePool"])
def test_a_last_convolution_whose_image_becomes_a_row(tail, tmp_path):
    behind = {
        "ReduceMean": [node("ReduceMean", "c", "y", axes=[2, 3], keepdims=0)],
        "AveragePool": [node("AveragePool", "c", "p", kernel_shape=[4, 4]), node("Flatten", "p", "y")],
    }
    nodes = [node("Conv", "x w", "h"), node("Relu", "h", "r"), node("Conv", "r scores", "l"), node("Relu", "l", "c")]
    info = helper.make_tensor_value_info
    for outputs, pattern in ((["n", 8], None), (["n", 8, 4, 4], "2:4")):
        graph = helper.make_graph(
            [*nodes, *(behind[tail] if pattern is None else [node("Identity", "c", "y")])],
            "g",
            [info("x", 1, ["n", 8, 4, 4])],
            [info("y", 1, outputs)],
            [weight("w", 16, 8, 1, 1), weight("scores", 8, 16, 1, 1)],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "a.onnx")
        document = prune_path(tmp_path / "a.onnx", tmp_path / "b.onnx", TWO_FOUR, force=True)
        assert {layer.name: layer.pattern for layer in document.layers} == {"w": "2:4", "scores": pattern}


@pytest.mark.parametrize("cut", ["Split", "Slice"])
def test_classes_and_boxes_that_share_a_concat(cut, tmp_path):
    """As YOLO's heads do: boxes go on through a convolution over their bins, classes do not."""
    integers = {
        "sizes": [8, 4],
        "shape": [0, 12, -1],
        "zero": [0],
        "bins": [8],
        "all": [12],
        "axis": [1],
        "back": [0, 8, 4, 4],
    }
    parts = {
        "Split": [node("Split", "f sizes", "b s", axis=1)],
        "Slice": [node("Slice", "f zero bins axis", "b"), node("Slice", "f bins all axis", "s")],
    }
    nodes = [
        node("Conv", "x w", "h"), node("Relu", "h", "r"), node("Conv", "r boxes", "hb"), node("Conv", "r scores", "hs"),
        node("Concat", "hb hs", "hh", axis=1), node("Reshape", "hh shape", "f"), *parts[cut],
        node("Reshape", "b back", "bb"), node("Conv", "bb later", "y"), node("Sigmoid", "s", "z"),
    ]  # fmt: skip
    weights = [weight("w", 16, 8, 1, 1), weight("boxes", 8, 16, 1, 1), weight("scores", 4, 16, 1, 1)]
    arrays = [constant(name, np.array(value)) for name, value in integers.items()]
    found = pruned(tmp_path, nodes, [*weights, weight("later", 4, 8, 1, 1), *arrays], outputs="y z")
    assert found == {"w": "2:4", "boxes": "2:4", "scores": None, "later": "2:4"}


def test_a_layer_that_reads_only_the_size_of_the_scores_is_not_behind_them(tmp_path):
    nodes = [
        *TRUNK,
        node("Softmax", "l", "y"),
        node("Shape", "l", "n"),
        node("Expand", "t n", "u"),
        node("MatMul", "u late", "z"),
    ]
    weights = [weight("w", 16, 32), weight("scores", 32, 8), weight("late", 8, 8), weight("t", 1, 8)]
    assert pruned(tmp_path, nodes, weights, outputs="y z")["scores"] is None
    conv = [node("Conv", "x w", "h"), node("Relu", "h", "r"), node("Conv", "r scores", "l"), node("Sigmoid", "l", "y")]
    behind = [node("Shape", "l", "n"), node("Expand", "t n", "u"), node("Conv", "u late", "z")]
    weights = [
        weight("w", 16, 8, 1, 1),
        weight("scores", 8, 16, 1, 1),
        weight("late", 8, 8, 1, 1),
        weight("t", 1, 8, 1, 1),
    ]
    assert pruned(tmp_path, [*conv, *behind], weights, outputs="y z")["scores"] is None


def test_scores_that_a_later_layer_reads_too(tmp_path):
    """An early exit is a head as much as the last."""
    nodes = [*TRUNK, node("Softmax", "l", "e"), node("MatMul", "l late", "k"), node("Relu", "k", "y")]
    weights = [weight("w", 16, 32), weight("scores", 32, 8), weight("late", 8, 8)]
    assert pruned(tmp_path, nodes, weights, outputs="y e") == {"w": "2:4", "scores": None, "late": None}


def test_heads_in_branches(tmp_path):
    branches = {
        name: helper.make_graph(
            [node("MatMul", f"r {name}_w", f"{name}_o")], name, [], [value(f"{name}_o")], [weight(f"{name}_w", 32, 8)]
        )
        for name in ("then_branch", "else_branch")
    }
    nodes = [*TRUNK[:2], node("If", "flag", "l", **branches), node("Softmax", "l", "y")]
    found = pruned(tmp_path, nodes, [weight("w", 16, 32)], "x flag")
    assert found == {"w": "2:4", "then_branch_w": None, "else_branch_w": None}


def test_the_end_of_a_residual_block_is_no_classifier(tmp_path):
    block = "MatMul {0} {1}a {1}1;Relu {1}1 {1}2;MatMul {1}2 {1}b {1}3;Add {0} {1}3 {1}"
    nodes = []
    for source, name in (("x", "p"), ("p", "q")):
        for line in block.format(source, name).split(";"):
            op_type, *values = line.split()
            nodes.append(helper.make_node(op_type, values[:-1], values[-1:]))
    nodes.append(node("LayerNormalization", "q g", "y"))
    weights = [weight(name, *shape) for p in "pq" for name, shape in ((f"{p}a", (16, 32)), (f"{p}b", (32, 16)))]
    found = pruned(tmp_path, nodes, [*weights, weight("g", 16)])
    assert found == dict.fromkeys(("pa", "pb", "qa", "qb"), "2:4")


def test_convolutions_that_choose_classes_and_that_make_images(tmp_path):
    nodes = [node("Conv", "x w", "h"), node("Relu", "h", "r"), node("Conv", "r last", "l")]
    weights = [weight("w", 16, 8, 3, 3), weight("last", 8, 16, 1, 1)]
    for tail, pattern in (
        ("GlobalAveragePool", None),
        ("Softmax", None),
        ("ArgMax", None),
        ("Sigmoid", None),
        ("Relu", "2:4"),
    ):
        found = pruned(tmp_path, [*nodes, node("Relu", "l", "z"), node(tail, "z", "y")], weights)
        assert found == {"w": "2:4", "last": pattern}, tail


def test_a_sigmoid_that_gates_makes_no_scores(tmp_path):
    """A backbone that ends in SiLU gives out features; two scores that are multiplied are scores."""
    nodes = [node("Conv", "x w", "h"), node("Relu", "h", "r"), node("Conv", "r last", "l"), node("Sigmoid", "l", "s")]
    weights = [weight("w", 16, 8, 3, 3), weight("last", 8, 16, 1, 1), weight("object", 8, 16, 1, 1)]
    assert pruned(tmp_path, [*nodes, node("Mul", "l s", "y")], weights[:2]) == {"w": "2:4", "last": "2:4"}
    scores = [node("Conv", "r object", "o"), node("Sigmoid", "o", "p"), node("Mul", "p s", "y")]
    assert pruned(tmp_path, [*nodes, *scores], weights) == {"w": "2:4", "last": None, "object": None}


def test_one_output_has_nothing_to_gain(tmp_path):
    nodes = [node("Conv", "x w", "h"), node("Conv", "h depth", "d"), node("Mul", "d h", "y")]
    found = pruned(tmp_path, nodes, [weight("w", 16, 8, 3, 3), weight("depth", 1, 16, 3, 3)])
    assert found == {"w": "2:4", "depth": None}


# Checkpoints


def by_name(tmp_path, **shapes):
    tensors = {name.replace("__", "."): np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "m.safetensors")
    return set(classifiers_of(list(open_layers(tmp_path / "m.safetensors"))))


CONV = (8, 8, 3, 3)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"conv__weight": CONV, "fc__weight": (10, 8)}, {"fc.weight"}),
        ({"features__0__weight": CONV, "classifier__0__weight": (16, 8), "classifier__3__weight": (10, 16)}, {3}),
        ({"a__weight": CONV, "heads__x__weight": (10, 8), "heads__y__weight": (4, 8)}, {"x", "y"}),
        ({"a__weight": CONV, "head__weight": (10, 8), "head_dist__weight": (10, 8)}, {"head", "head_dist"}),
        (
            {"a__weight": CONV, "classifier__dense__weight": (8, 8), "classifier__out_proj__weight": (2, 8)},
            {"out_proj"},
        ),
        ({"model__a__weight": CONV, "model__lm_head__weight": (100, 8)}, {"lm_head"}),
        ({"a__weight": CONV, "AuxLogits__fc__weight": (10, 8), "fc__weight": (10, 8)}, {"AuxLogits.fc", "fc.weight"}),
        (
            {"state_dict__a__weight": CONV, "state_dict_ema__fc__weight": (9, 8), "state_dict__fc__weight": (9, 8)},
            {"ema", "dict.fc"},
        ),
        ({"a__weight": CONV, "qa_outputs__weight": (2, 8)}, {"qa_outputs"}),
        ({"fc__weight": (8, 8), "fc2__weight": (8, 8)}, set()),
        ({"0__weight": (8, 8), "2__weight": (8, 8), "10__weight": (4, 8)}, {10}),
        ({"0__weight": (8, 8), "2__weight": CONV}, set()),
        ({"a__weight": (8, 8), "b__weight": (8, 8)}, set()),
        ({"fc__weight": (8, 8)}, set()),
    ],
)
def test_classifiers_by_their_names(shapes, expected, tmp_path):
    found = by_name(tmp_path, **shapes)
    assert len(found) == len(expected)
    assert all(any(str(word) in name for name in found) for word in expected)


def test_shards_are_asked_together(tmp_path):
    """The shard that holds head.0 does not hold head.2, and no shard holds a weight with its bias."""
    source = tmp_path / "model"
    source.mkdir()
    names = {"a.weight": (8, 8), "head.0.weight": (8, 8), "head.2.weight": (4, 8), "b.weight": (8, 24), "b.bias": (24,)}
    files = dict(zip(names, ("1", "1", "2", "1", "2"), strict=True))
    for file in ("1", "2"):
        held = {n: RNG.standard_normal(s).astype(np.float32) for n, s in names.items() if files[n] == file}
        save_file(held, source / f"{file}.safetensors")
    index = {"weight_map": {name: f"{file}.safetensors" for name, file in files.items()}}
    (source / "model.safetensors.index.json").write_text(str(index).replace("'", '"'))
    document = prune_path(source, tmp_path / "out", TWO_FOUR)
    axes = {layer.name: layer.axis for layer in document.layers if layer.pattern}
    assert axes == {"a.weight": 1, "head.0.weight": 1, "b.weight": 0}
