"""Tables that somebody computed, against weights that are random, trained or unusual."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from nm2trt.pattern import NMPattern
from nm2trt.prune import Request, prune_path
from nm2trt.prune.fixed_values import fixed_reason

RNG = np.random.default_rng(0)
PLACES = np.arange(64)[:, None]
SLOW = 10000 ** (np.arange(16) / 16)


def identity_conv():
    kernel = np.zeros((8, 8, 3, 3), np.float32)
    kernel[np.arange(8), np.arange(8)] = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
    return kernel


FOURIER = np.cos(2 * np.pi * np.outer(np.arange(400), np.arange(200)) / 400)
TABLES = {
    "bins of a detector": (np.arange(16).reshape(1, 16, 1, 1), 1),
    "bins from 0 to 1": (np.linspace(0, 1, 32).reshape(32, 1), 0),
    "bins that go down": (np.linspace(3, -3, 8).reshape(1, 8), 1),
    "Fourier": (FOURIER, 0),
    "windowed Fourier": (FOURIER * np.hanning(401)[:-1, None], 0),
    "cosine transform": (np.cos(np.pi / 40 * (np.arange(40)[:, None] + 0.5) * np.arange(16)), 0),
    "mel filters": (np.maximum(0, 1 - np.abs(np.arange(200)[:, None] / 5 - np.arange(40))), 0),
    "sinusoidal positions": (np.concatenate([np.sin(PLACES / SLOW), np.cos(PLACES / SLOW)], 1), 0),
    "Sobel": (identity_conv(), 1),
    "identity": (np.eye(16), 0),
    "Haar": (np.where(RNG.random((8, 8)) < 0.5, 0.5, -0.5), 0),
    "average": (np.full((8, 8), 1 / 8), 0),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("name", TABLES)
def test_tables(name, dtype):
    values, axis = TABLES[name]
    assert fixed_reason(values.astype(dtype), axis)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "linear": normal(64, 64),
    "conv": normal(64, 64, 3, 3),
    "one output": normal(1, 64),
    "small": normal(4, 4),
    "low rank": normal(64, 1) @ normal(1, 64),
    "orthogonal": np.linalg.qr(normal(64, 64))[0],
    "smooth rows": np.cumsum(normal(64, 64), 1),
    "very smooth rows": np.cumsum(np.cumsum(normal(128, 128), 1), 1),
    "int8": RNG.integers(-127, 128, (64, 64)).astype(np.int8),
    "float16": normal(64, 64).astype(np.float16),
    "bfloat16": normal(64, 64).astype(ml_dtypes.bfloat16),
    "pruned": np.where(RNG.random((64, 64)) < 0.5, normal(64, 64), 0),
    "zeros": np.zeros((64, 64), np.float32),
    "with NaN": np.where(np.eye(8) > 0, np.nan, 1).astype(np.float32),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name):
    for axis in range(WEIGHTS[name].ndim):
        assert fixed_reason(WEIGHTS[name], axis) == ""


@given(st.integers(0, 2**32 - 1), st.integers(1, 48), st.integers(1, 48), st.sampled_from([0.02, 1.0, 50.0]))
@examples(150)
def test_random_weights_are_never_tables(seed, rows, columns, scale):
    """Of three and more inputs; two points are always on a line."""
    values = (np.random.default_rng(seed).standard_normal((rows, columns)) * scale).astype(np.float32)
    if min(rows, columns) > 1 or rows * columns > 6:
        assert fixed_reason(values, 0) == fixed_reason(values, 1) == ""


@given(st.floats(-8, 8), st.floats(0.01, 4), st.integers(4, 64), st.booleans())
def test_evenly_spaced_values_are_always_tables(start, step, count, down):
    ramp = (start + step * np.arange(count) * (-1 if down else 1)).astype(np.float32)
    assert "evenly spaced" in fixed_reason(ramp.reshape(1, count, 1, 1), 1)


@pytest.mark.parametrize("stored", ["float32", "float16", "constant node"])
def test_the_projection_of_a_box_head_keeps_its_bits(stored, tmp_path):
    bins = np.arange(16, dtype=np.float16 if stored == "float16" else np.float32).reshape(1, 16, 1, 1)
    table = numpy_helper.from_array(bins, "bins")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Reshape", ["c", "s"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Softmax", ["t"], ["p"], axis=1),
        helper.make_node("Conv", ["p", "bins"], ["y"]),
    ]
    if stored == "constant node":
        nodes.insert(0, helper.make_node("Constant", [], ["bins"], value=table))
    initializers = [
        numpy_helper.from_array(normal(64, 64, 1, 1).astype(bins.dtype), "w"),
        numpy_helper.from_array(np.array([0, 4, 16, 16]), "s"),
        *([table] if stored != "constant node" else []),
    ]
    kind = TensorProto.FLOAT16 if stored == "float16" else TensorProto.FLOAT
    ports = [[helper.make_tensor_value_info(name, kind, None)] for name in "xy"]
    graph = helper.make_graph(nodes, "g", *ports, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    document = prune_path(tmp_path / "a.onnx", tmp_path / "b.onnx", Request(pattern=NMPattern(2, 4)))
    assert {layer.name: layer.pattern for layer in document.layers} == {"w": "2:4", "bins": None}
    found = onnx.load(tmp_path / "b.onnx")
    stored_table = found.graph.node[0].attribute[0].t if stored == "constant node" else found.graph.initializer[2]
    assert np.array_equal(numpy_helper.to_array(stored_table), bins)
