"""Rows of inputs as the driver cuts them from a graph, against the operators themselves in onnx's reference."""

import numpy as np
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, save
from onnx.reference import ReferenceEvaluator

from nm2trt.pattern import NMPattern
from nm2trt.prune.calibrated.onnx_graph import RunnableGraph
from nm2trt.prune.calibrated.onnx_layers import find_prunable
from nm2trt.prune.selection import Request, decide
from nm2trt.prune.writers.open_file import open_stored


def one_layer(folder, node, w, x_shape):
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, "w")],
    )
    path = folder / "one.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def only_tensor(path):
    decisions = decide(
        open_stored(path).weights, Request(pattern=NMPattern(2, 4), layer_patterns={"w": NMPattern(2, 4)}), path
    )
    (tensor,), _ = find_prunable(RunnableGraph(path), decisions)
    return tensor


def check(path, x, w):
    """The energy of rows times columns is that of the operator's output, whatever the order of both."""
    tensor = only_tensor(path)
    (layer,) = tensor.inputs
    rows = np.concatenate(list(layer.rows(x)), axis=1).astype(np.float64)
    columns = layer.columns(w).astype(np.float64)
    products = np.einsum("grc,goc->gro", rows, columns)
    (y,) = ReferenceEvaluator(str(path)).run(None, {"x": x})
    assert products.size == y.size
    assert np.sort(products.reshape(-1)) == pytest.approx(np.sort(y.astype(np.float64).reshape(-1)), abs=1e-4)
    # Groups of M lie along the reduction axis: pruning columns is pruning the operator's weight.
    axis = tensor.weight.layer.reduction_axis
    positions = np.arange(w.size).reshape(w.shape)
    expected = {tuple(sorted(group)) for group in np.moveaxis(positions, axis, -1).reshape(-1, 4).tolist()}
    assert {tuple(sorted(group)) for group in layer.columns(positions).reshape(-1, 4).tolist()} == expected


@examples(40)
@given(data=st.data())
def test_convolutions(tmp_path_factory, data):
    rank, groups = data.draw(st.integers(1, 3)), data.draw(st.sampled_from((1, 2, 3)))
    kernel = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    sizes = data.draw(st.lists(st.integers(3, 6), min_size=rank, max_size=rank))
    strides = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    how = {"strides": strides, "kernel_shape": kernel, "group": groups}
    padding = data.draw(st.sampled_from(("pads", "SAME_UPPER", "SAME_LOWER", "VALID", "none")))
    if padding == "pads":
        how["pads"] = data.draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
        how["dilations"] = [1 if size < 5 else 2 for size in sizes]
    elif padding != "none":
        how["auto_pad"] = padding
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    w = rng.standard_normal((2 * groups, 4, *kernel)).astype(np.float32)
    x = rng.standard_normal((2, 4 * groups, *sizes)).astype(np.float32)
    path = one_layer(tmp_path_factory.mktemp("conv"), helper.make_node("Conv", ["x", "w"], ["y"], **how), w, x.shape)
    check(path, x, w)


@pytest.mark.parametrize("turn_data", [0, 1])
@pytest.mark.parametrize("turn_weight", [0, 1])
@pytest.mark.parametrize("left", [False, True])
def test_gemm(tmp_path, turn_data, turn_weight, left):
    rng = np.random.default_rng(0)
    inner, rows, outputs = 8, 5, 3
    x_shape = (rows, inner) if not left else (inner, rows)
    w_shape = (inner, outputs) if not left else (outputs, inner)
    x = rng.standard_normal(x_shape[::-1] if turn_data else x_shape).astype(np.float32)
    w = rng.standard_normal(w_shape[::-1] if turn_weight else w_shape).astype(np.float32)
    turns = {"transA": turn_weight, "transB": turn_data} if left else {"transA": turn_data, "transB": turn_weight}
    node = helper.make_node("Gemm", ["w", "x"] if left else ["x", "w"], ["y"], **turns)
    check(one_layer(tmp_path, node, w, x.shape), x, w)


@pytest.mark.parametrize(
    ("left", "w_shape", "x_shape"),
    [
        (False, (8, 3), (5, 8)),
        (False, (8, 3), (2, 3, 5, 8)),
        (False, (8, 3), (8,)),
        (False, (2, 8, 3), (2, 5, 8)),
        (False, (2, 8, 3), (4, 1, 5, 8)),
        (False, (2, 1, 8, 3), (2, 3, 5, 8)),
        (False, (2, 3, 8, 4), (5, 8)),
        (True, (3, 8), (2, 8, 5)),
        (True, (3, 8), (8,)),
        (True, (2, 3, 8), (4, 2, 8, 5)),
    ],
)
def test_matmul(tmp_path, left, w_shape, x_shape):
    rng = np.random.default_rng(0)
    w, x = (rng.standard_normal(shape).astype(np.float32) for shape in (w_shape, x_shape))
    node = helper.make_node("MatMul", ["w", "x"] if left else ["x", "w"], ["y"])
    check(one_layer(tmp_path, node, w, x.shape), x, w)
