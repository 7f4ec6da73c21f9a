"""When two networks count as the same graph, and what filling pruned weights leaves alone."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from small_networks import small_network

from nm2trt.errors import InputError
from nm2trt.onnx_tools import lazy_file
from nm2trt.onnx_tools.graph_compare import (
    check_same_graph,
    fill_pruned,
    find_difference,
    precision_of,
    read_model,
    weights,
    zero_share,
)


def same(one, other):
    check_same_graph(one, other, where="here")


def test_values_and_names_may_differ():
    same(small_network(seed=1), small_network(seed=2, sparse=True, prefix="other/"))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"channels": 12}, ["operator 0", "float[8,4,3,3]", "float[12,4,3,3]"]),
        ({"kernel": 5}, ["operator 0", "float[8,4,5,5]"]),
        ({"tail": ("Sigmoid",)}, ["operator 4", "Sigmoid", "GlobalAveragePool"]),
        ({"width": 7}, ["input 0", "float[?,4,7,7]"]),
        ({"batch": 2}, ["input 0", "float[2,4,6,6]"]),
    ],
)
def test_the_first_difference_is_named(changed, named):
    with pytest.raises(InputError, match="not the same graph") as caught:
        same(small_network(), small_network(**changed))
    for fragment in named:
        assert fragment in str(caught.value)


def test_another_wiring_of_the_same_operators_is_another_graph():
    one, other = small_network(tail=("Sigmoid", "Tanh")), small_network(tail=("Sigmoid", "Tanh"))
    other.graph.node[-1].input[0] = "t0"
    with pytest.raises(InputError, match="operator 6"):
        same(one, other)


@pytest.mark.parametrize(
    ("names", "same_ports", "same_all"), [("free", True, True), ("ports", False, True), ("all", False, False)]
)
def test_names_count_where_they_are_asked_for(names, same_ports, same_all):
    def difference(other):
        return find_difference(small_network(), other, words=("one", "the other"), names=names)

    assert difference(small_network(seed=1)) == ""
    ported, named = small_network(), small_network()
    ported.graph.input[0].name = "other"
    ported.graph.node[0].input[0] = "other"
    assert (difference(ported) == "") == same_ports
    named.graph.initializer[0].name = "other weight"
    named.graph.node[0].input[1] = "other weight"
    assert (difference(named) == "") == same_all


def test_weights_may_stay_in_their_file(tmp_path):
    models = [small_network(seed=seed, channels=64) for seed in (1, 2)]
    for at, model in enumerate(models):
        onnx.save(model, tmp_path / f"{at}.onnx")
        onnx.save(
            model, tmp_path / f"{at}-beside.onnx", save_as_external_data=True, location=f"{at}.data", size_threshold=0
        )
    read = [lazy_file.read_model(tmp_path / name) for name in ("0.onnx", "1.onnx", "0-beside.onnx", "1-beside.onnx")]
    for one in read[1:]:
        assert find_difference(read[0], one, words=("one", "the other"), names="all") == ""


def test_weights_are_found_where_verify_finds_them():
    """In a Constant node, behind a Squeeze, and in a branch: each once, and filled there."""

    def weight(seed):
        values = np.random.default_rng(seed).standard_normal((1, 4, 4)).astype(np.float32)
        values[:, :2] = 0
        return values

    stored = numpy_helper.from_array(weight(0), "stored")
    branches = {
        name: helper.make_graph(
            [helper.make_node("MatMul", ["h", "stored2"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)],
            [numpy_helper.from_array(weight(seed)[0], "stored2")],
        )
        for seed, name in ((1, "then"), (2, "else"))
    }
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["stored", "axes"], ["flat"]),
            helper.make_node("Constant", [], ["inside"], value=numpy_helper.from_array(weight(3)[0])),
            helper.make_node("MatMul", ["x", "flat"], ["g"]),
            helper.make_node("MatMul", ["g", "inside"], ["h"]),
            helper.make_node("If", ["c"], ["y"], then_branch=branches["then"], else_branch=branches["else"]),
        ],
        "four weights",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [stored, numpy_helper.from_array(np.array([0], np.int64), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = [values.tobytes() for _, values in weights(model)]
    assert sorted(found) == sorted(weight(seed).tobytes() for seed in range(4))
    assert zero_share(model) == 0.5
    assert zero_share(fill_pruned(model, seed=0)) == 0
    assert zero_share(model) == 0.5


def test_attributes_count():
    other = small_network()
    other.graph.node[0].attribute[0].ints[:] = [0, 0, 2, 2]
    with pytest.raises(InputError, match="pads"):
        same(small_network(), other)


def test_a_shared_constant_is_not_two_constants():
    one, other = small_network(channels=4), small_network(channels=4)
    other.graph.node[2].input[1] = "w0"
    with pytest.raises(InputError, match="operator 2"):
        same(one, other)


def test_integers_that_shape_the_computation_must_agree():
    def reshaped(sizes):
        model = small_network()
        model.graph.initializer.append(numpy_helper.from_array(np.array(sizes, dtype=np.int64), "sizes"))
        model.graph.node.append(helper.make_node("Reshape", ["y", "sizes"], ["z"]))
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
        return model

    same(reshaped([-1, 8]), reshaped([-1, 8]))
    with pytest.raises(InputError, match=r"int64\[2\]"):
        same(reshaped([-1, 8]), reshaped([-1, 4]))


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "fp32"), (np.float16, "fp16"), (ml_dtypes.bfloat16, "bf16")])
def test_precision_is_read_from_the_weights_and_must_agree(dtype, name):
    model = small_network(dtype=dtype)
    assert precision_of(model) == name
    other = np.float16 if name != "fp16" else np.float32
    with pytest.raises(InputError, match=rf"dense network is {name}, the sparse one"):
        same(model, small_network(dtype=other))


@examples(25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]))
def test_filling_takes_every_zero_and_nothing_else(seed, dtype):
    sparse = small_network(seed=seed % 1000, sparse=True, dtype=dtype)
    before = sparse.SerializeToString()
    filled = fill_pruned(sparse, seed=seed)
    assert sparse.SerializeToString() == before
    same(filled, sparse)
    assert 0.45 < zero_share(sparse) < 0.55
    assert zero_share(filled) == 0.0
    for old, new in zip(sparse.graph.initializer, filled.graph.initializer, strict=True):
        was, now = numpy_helper.to_array(old), numpy_helper.to_array(new)
        assert now.dtype == was.dtype
        assert np.array_equal(now[was != 0], was[was != 0])
        assert set(now.ravel().tolist()) <= set(was[was != 0].ravel().tolist())


def test_weights_are_found_behind_quantization():
    scale = numpy_helper.from_array(np.array(0.1, dtype=np.float32), "scale")
    stored = numpy_helper.from_array(np.array([[1, 0], [0, 2]], dtype=np.int8), "stored")
    nodes = [
        helper.make_node("DequantizeLinear", ["stored", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 2]) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:], [scale, stored]))
    assert [tensor.name for tensor, _ in weights(model)] == ["stored"]
    assert zero_share(model) == 0.5
    assert precision_of(model) == "fp32+int8"


@examples(40)
@given(st.binary(max_size=300), st.integers(0, 2000))
def test_whatever_the_bytes_only_a_plain_refusal_comes_out(tmp_path_factory, noise, cut):
    path = tmp_path_factory.mktemp("noise") / "m.onnx"
    for content in (noise, small_network().SerializeToString()[:cut]):
        path.write_bytes(content)
        try:
            read_model(path)
        except InputError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
