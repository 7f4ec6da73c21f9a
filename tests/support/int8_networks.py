"""Small float networks for the calibration tests, built by code."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def two_of_four(rng, shape, axis=1):
    """Random weights with the two largest of every four along an axis."""
    w = np.moveaxis(rng.standard_normal(shape).astype(np.float32), axis, -1)
    groups = w.reshape(*w.shape[:-1], -1, 4).copy()
    drop = np.argsort(np.abs(groups), axis=-1)[..., :2]
    np.put_along_axis(groups, drop, 0, axis=-1)
    return np.ascontiguousarray(np.moveaxis(groups.reshape(w.shape), -1, axis))


def model(nodes, inputs, outputs, weights, *, opset=20):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def node(op, name, inputs, output, **attributes):
    return helper.make_node(op, inputs, [output], name=name, **attributes)


def residual(seed=0, *, channels=8, batch="n"):
    """Stem, a block with identity skip, a block with projection skip, global pool, classifier."""
    rng = np.random.default_rng(seed)
    c = channels

    def conv(name, x, y, **attributes):
        return node("Conv", name, [x, f"{name}.weight", f"{name}.bias"], y, **attributes)

    three = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        conv("stem", "x", "s", **three),
        node("Relu", "r0", ["s"], "a"),
        conv("c1", "a", "b", **three),
        node("Relu", "r1", ["b"], "b1"),
        conv("c2", "b1", "d", **three),
        node("Add", "add1", ["d", "a"], "e"),
        node("Relu", "r2", ["e"], "f"),
        conv("c3", "f", "g", **three),
        node("Relu", "r3", ["g"], "g1"),
        conv("c4", "g1", "h", **three),
        conv("proj", "f", "p", kernel_shape=[1, 1]),
        node("Add", "add2", ["p", "h"], "i"),
        node("Relu", "r4", ["i"], "j"),
        node("GlobalAveragePool", "gap", ["j"], "k"),
        node("Flatten", "flat", ["k"], "l"),
        node("Gemm", "fc", ["l", "fc.weight", "fc.bias"], "logits", transB=1),
    ]
    weights = {"stem.weight": rng.standard_normal((c, 3, 3, 3)).astype(np.float32)}
    for name in ("c1", "c2", "c3", "c4"):
        weights[f"{name}.weight"] = two_of_four(rng, (c, c, 3, 3)) / c
    weights["proj.weight"] = two_of_four(rng, (c, c, 1, 1))
    weights["fc.weight"] = rng.standard_normal((5, c)).astype(np.float32)
    for name in ("stem", "c1", "c2", "c3", "c4", "proj"):
        weights[f"{name}.bias"] = rng.standard_normal(c).astype(np.float32)
    weights["fc.bias"] = rng.standard_normal(5).astype(np.float32)
    return model(nodes, [("x", FLOAT, [batch, 3, 8, 8])], [("logits", FLOAT, [batch, 5])], weights)


def products(seed=0):
    """x -> MatMul (2:4) -> bias -> Relu -> MatMul (2:4) -> + x, and a product of activations."""
    rng = np.random.default_rng(seed)
    nodes = [
        node("MatMul", "up", ["x", "up.weight"], "a"),
        node("Add", "bias", ["a", "up.bias"], "b"),
        node("Relu", "relu", ["b"], "c"),
        node("MatMul", "down", ["c", "down.weight"], "d"),
        node("Add", "skip", ["d", "x"], "e"),
        node("Transpose", "t", ["e"], "et", perm=[0, 2, 1]),
        node("MatMul", "scores", ["e", "et"], "y"),
    ]
    weights = {
        "up.weight": two_of_four(rng, (8, 16), axis=0),
        "up.bias": rng.standard_normal(16).astype(np.float32),
        "down.weight": two_of_four(rng, (16, 8), axis=0),
    }
    return model(nodes, [("x", FLOAT, ["n", 4, 8])], [("y", FLOAT, ["n", 4, 4])], weights)


def concatenated(seed=0):
    """Two convolutions and the input joined, read by a third convolution; and once more around it."""
    rng = np.random.default_rng(seed)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in (("w1", (4, 4, 1, 1)), ("w2", (4, 4, 1, 1)), ("w3", (4, 16, 1, 1)))
    }
    nodes = [
        node("Conv", "c1", ["x", "w1"], "a"),
        node("Conv", "c2", ["x", "w2"], "b"),
        node("Concat", "inner", ["a", "b"], "ab", axis=1),
        node("Concat", "outer", ["ab", "x", "x"], "abxx", axis=1),
        node("Conv", "c3", ["abxx", "w3"], "y"),
    ]
    return model(nodes, [("x", FLOAT, ["n", 4, 2, 2])], [("y", FLOAT, ["n", 4, 2, 2])], weights)


def two_inputs(seed=0):
    """Token ids and a mask: an embedding, a product, a mean over what the mask keeps."""
    rng = np.random.default_rng(seed)
    nodes = [
        node("Gather", "embed", ["table", "ids"], "e"),
        node("MatMul", "proj", ["e", "w"], "p"),
        node("Unsqueeze", "wide", ["mask", "last"], "m"),
        node("Mul", "masked", ["p", "m"], "q"),
        node("ReduceMean", "mean", ["q", "axis"], "y", keepdims=0),
    ]
    weights = {
        "table": rng.standard_normal((11, 8)).astype(np.float32),
        "w": rng.standard_normal((8, 8)).astype(np.float32),
        "last": np.array([-1], np.int64),
        "axis": np.array([1], np.int64),
    }
    inputs = [("ids", TensorProto.INT64, ["n", 6]), ("mask", FLOAT, ["n", 6])]
    return model(nodes, inputs, [("y", FLOAT, ["n", 8])], weights)


def saved(made, path):
    onnx.save(made, path)
    return path
