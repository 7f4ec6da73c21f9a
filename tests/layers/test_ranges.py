"""Values read in ranges are the values read whole; graphs read without their weights are the same graphs."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from nm2trt.errors import InputError
from nm2trt.layers import open_layers, open_source
from nm2trt.onnx_tools import lazy_file as onnx_file


def weights(*shape, dtype=np.float32):
    return np.random.default_rng(0).integers(-9, 9, shape).astype(dtype)


def assert_ranges_equal_the_whole(layer, expected):
    flat = np.ascontiguousarray(expected).reshape(-1)
    np.testing.assert_array_equal(layer.weight(), expected)
    assert layer.load_range is not None
    for start, stop in ((0, flat.size), (0, 1), (7, 20), (flat.size - 3, flat.size), (5, 5)):
        np.testing.assert_array_equal(layer.load_range(start, stop), flat[start:stop])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
def test_safetensors(dtype, tmp_path):
    weight = weights(6, 8, 3, 3, dtype=dtype)
    save_file({"a.bias": weights(5), "b.weight": weight}, tmp_path / "m.safetensors")
    layer = next(layer for layer in open_layers(tmp_path / "m.safetensors") if layer.name == "b.weight")
    assert_ranges_equal_the_whole(layer, weight)


def test_masks_are_applied_to_ranges(tmp_path):
    weight, mask = weights(16, 32), weights(16, 32) > 0
    save_file({"w.weight": weight, "w.__weight_mma_mask": mask}, tmp_path / "m.safetensors")
    layer = next(layer for layer in open_layers(tmp_path / "m.safetensors") if layer.name == "w.weight")
    assert_ranges_equal_the_whole(layer, np.where(mask, weight, 0))


def conv_model(*initializers, nodes=(), weight="w"):
    graph = helper.make_graph(
        [*nodes, helper.make_node("Conv", ["x", weight], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
@pytest.mark.parametrize("storage", ["embedded", "external", "constant"])
def test_onnx(dtype, storage, tmp_path):
    weight = weights(8, 16, 3, 3, dtype=dtype)
    path = tmp_path / "m.onnx"
    if storage == "constant":
        model = conv_model(nodes=[helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight))])
        path.write_bytes(model.SerializeToString())
    else:
        model = conv_model(numpy_helper.from_array(weight, "w"))
        onnx.save(model, path, save_as_external_data=storage == "external", location="w.bin", size_threshold=0)
    (layer,) = open_layers(path)
    assert_ranges_equal_the_whole(layer, weight)


def test_ranges_behind_a_reshape_but_not_behind_a_transpose(tmp_path):
    weight = weights(16, 8, 9)
    shape = numpy_helper.from_array(np.array([16, 8, 3, 3]), "s")
    path = tmp_path / "m.onnx"
    reshape = helper.make_node("Reshape", ["w", "s"], ["r"])
    path.write_bytes(
        conv_model(numpy_helper.from_array(weight, "w"), shape, nodes=[reshape], weight="r").SerializeToString()
    )
    (layer,) = open_layers(path)
    assert_ranges_equal_the_whole(layer, weight.reshape(16, 8, 3, 3))
    transpose = helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0, 2])
    path.write_bytes(
        conv_model(numpy_helper.from_array(weight, "w"), nodes=[transpose], weight="t").SerializeToString()
    )
    (layer,) = open_layers(path)
    assert layer.load_range is None
    np.testing.assert_array_equal(layer.weight(), weight.transpose(1, 0, 2))


@pytest.mark.parametrize(
    ("dtype", "data_type"), [(ml_dtypes.int4, TensorProto.INT4), (ml_dtypes.uint4, TensorProto.UINT4)]
)
@pytest.mark.parametrize("external", [True, False])
def test_packed_types_equal_the_library(dtype, data_type, external, tmp_path):
    # An odd number of values, and more bytes than are kept in the message.
    weight = np.random.default_rng(1).integers(0, 8, (45, 33, 3)).astype(dtype)
    tensor = numpy_helper.from_array(weight, "w")
    assert tensor.data_type == data_type
    scale = numpy_helper.from_array(np.float32(1), "s")
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["f"])
    path = tmp_path / "m.onnx"
    onnx.save(
        conv_model(tensor, scale, nodes=[node], weight="f"),
        path,
        save_as_external_data=external,
        location="w.bin",
        size_threshold=100,
    )
    (layer,) = open_layers(path)
    assert layer.load_range is None
    np.testing.assert_array_equal(layer.weight().astype(np.int32), numpy_helper.to_array(tensor).astype(np.int32))


@given(st.lists(st.sampled_from((0, 1, 10, 255, 300, 5000)), max_size=4), st.booleans())
def test_what_is_read_without_weights_is_the_model(tmp_path_factory, sizes, nested):
    """Put the bytes back, and protobuf must see the model that was written."""
    tensors = [numpy_helper.from_array(weights(size), f"t{size}-{i}") for i, size in enumerate(sizes)]
    constants = [
        helper.make_node("Constant", [], [f"c{i}"], value=tensor, doc_string="x" * 2000)
        for i, tensor in enumerate(tensors)
    ]
    model = conv_model(*tensors, nodes=constants)
    if nested:
        branch = helper.make_graph(constants, "b", [], [], tensors)
        model.graph.node.add(op_type="If", input=["f"]).attribute.append(helper.make_attribute("then_branch", branch))
    path = tmp_path_factory.mktemp("m") / "m.onnx"
    raw = model.SerializeToString()
    path.write_bytes(raw)
    read = onnx_file.read_model(path)

    def restore(graph):
        restored = 0
        for node in graph.node:
            for attribute in node.attribute:
                restored += restore(attribute.g) if attribute.HasField("g") else put_back(attribute.t)
        return restored + sum(put_back(tensor) for tensor in graph.initializer)

    def put_back(tensor):
        place = onnx_file.raw_range(tensor, path)
        if place is None:
            return 0
        tensor.raw_data = raw[place.start : place.start + place.size_bytes]
        return 1

    assert restore(read.graph) == sum(4 * size >= 1024 for size in sizes) * (4 if nested else 2)
    assert read == model


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(conv_model(numpy_helper.from_array(weights(64, 64, 3, 3), "w")).SerializeToString())
    (layer,) = open_layers(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="ends inside it"):
        layer.weight()
    with pytest.raises(InputError, match="ends inside it"):
        layer.load_range(0, 36864)


def test_functions_that_double_with_every_call_are_refused(tmp_path):
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    functions = [
        helper.make_function(
            "local",
            f"F{i}",
            ["a"],
            ["c"],
            [
                helper.make_node(f"F{i + 1}", ["a"], ["b"], domain="local"),
                helper.make_node(f"F{i + 1}", ["b"], ["c"], domain="local"),
            ],
            opsets,
        )
        for i in range(40)
    ]
    functions.append(
        helper.make_function("local", "F40", ["a"], ["c"], [helper.make_node("Relu", ["a"], ["c"])], opsets)
    )
    graph = helper.make_graph([helper.make_node("F0", ["x"], ["y"], domain="local")], "g", [], [])
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, functions=functions).SerializeToString())
    with pytest.raises(InputError, match="million nodes"):
        open_source(path)


def test_verdicts_need_no_heavy_import(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(conv_model(numpy_helper.from_array(weights(8, 8, 3, 3), "w")).SerializeToString())
    code = (
        "import sys; from nm2trt.cli.main import run; run(['verify', sys.argv[1]]); "
        "print(*sorted({'onnx_ir', 'sympy', 'pydantic', 'rich', 'torch'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert "prunable layers" in result.stdout
    assert result.stderr.split() == []
