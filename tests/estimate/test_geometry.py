"""Layer geometry: FLOPs against torch's own counter, bytes and GEMM sizes against hand-computed cases."""

import math

import numpy as np
import onnx
import pytest
import torch
import torchvision
from estimate_graphs import conv_net, save
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from nm2trt.errors import ConfigError, InputError
from nm2trt.estimate.geometry import Traffic
from nm2trt.estimate.network_layers import layer_geometries, network_geometry


def torch_flops(model, *inputs):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_torchvision_flops_are_those_that_torch_counts(name, tmp_path):
    model = torchvision.models.get_model(name, weights=None).eval()
    x = torch.zeros(2, 3, 64, 64)
    torch.onnx.export(model, (x,), tmp_path / "m.onnx", dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    network = network_geometry(tmp_path / "m.onnx", batch=2)
    assert network.flops == torch_flops(model, x)
    assert network.inputs == {"x": (2, 3, 64, 64)}
    assert not network.notes


@pytest.mark.not_quick
def test_modules_in_torch_are_named_by_both_exporters(tmp_path):
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU()), torch.nn.Linear(16, 4))
    x = torch.zeros(2, 3, 8)
    for dynamo in (False, True):
        torch.onnx.export(model.eval(), (x,), tmp_path / "m.onnx", dynamo=dynamo, verbose=False)
        found = [layer.torch_name for layer in layer_geometries(tmp_path / "m.onnx") if layer.weight]
        assert found == ["0.0", "1"], dynamo


def test_transformer_is_read_as_products_and_one_attention_a_layer(tmp_path):
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    x = torch.zeros(3, 10, 32)
    torch.onnx.export(model, (x,), tmp_path / "m.onnx", dynamo=False, training=torch.onnx.TrainingMode.PRESERVE)
    network = network_geometry(tmp_path / "m.onnx")
    kinds = [found.kind for found in network.layers if found.is_product]
    assert kinds == ["gemm", "attention", "gemm", "gemm", "gemm"] * 2
    tokens = 3 * 10
    products = 2 * tokens * (32 * 96 + 32 * 32 + 2 * 32 * 64)
    attention = 2 * 2 * 3 * 4 * 10 * 10 * 8
    assert network.flops == 2 * (products + attention)


def test_conv_is_an_implicit_gemm_with_its_bytes(tmp_path):
    relu = helper.make_node("Relu", ["y"], ["z"], name="relu")
    (layer,) = layer_geometries(conv_net(tmp_path / "m.onnx", stride=2, extra=[relu]), batch=4)
    assert (layer.m, layer.n, layer.k, layer.groups) == (4 * 14 * 14, 128, 64 * 9, 1)
    assert layer.flops == 2 * 4 * 14 * 14 * 128 * 64 * 9
    assert layer.op_types == ("Conv", "Relu")
    assert layer.weight == "conv.weight"
    elements = 4 * 64 * 28 * 28 + 4 * 128 * 14 * 14 + 128 * 64 * 9
    assert layer.size_bytes("fp16") == 2 * elements
    assert layer.size_bytes("int8") == elements
    assert layer.intensity("fp16") == pytest.approx(layer.flops / (2 * elements))


def test_a_stride_wider_than_the_kernel_reads_a_part(tmp_path):
    (layer,) = layer_geometries(conv_net(tmp_path / "m.onnx", kernel=1, stride=2), batch=1)
    assert layer.reads.floats == 64 * 28 * 28 // 4


def test_residual_sum_and_activation_belong_to_the_convolution(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["y", "s", "s", "s", "s"], ["b"], name="bn"),
        helper.make_node("Add", ["b", "x"], ["a"], name="add"),
        helper.make_node("Relu", ["a"], ["z"], name="relu"),
        helper.make_node("GlobalAveragePool", ["z"], ["p"], name="pool"),
    ]
    weights = {"w": np.zeros((8, 8, 3, 3), np.float32), "s": np.ones(8, np.float32)}
    conv, pool = layer_geometries(save(tmp_path / "m.onnx", nodes, {"x": [2, 8, 5, 5]}, ["p"], weights))
    assert conv.op_types == ("Conv", "BatchNormalization", "Add", "Relu")
    image = 2 * 8 * 5 * 5
    assert (conv.reads.floats, conv.writes.floats, pool.reads.floats, pool.writes.floats) == (image, image, image, 16)
    assert pool.kind == "memory"


def quantized(path, *, quantize_output):
    scale, zero = np.array(0.1, np.float32), np.array(0, np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="q0"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="dq0"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], name="dqw"),
        helper.make_node("Conv", ["xd", "wd"], ["y"], name="conv"),
        helper.make_node("Relu", ["y"], ["r"], name="relu"),
    ]
    if quantize_output:
        nodes += [
            helper.make_node("QuantizeLinear", ["r", "s", "z"], ["rq"], name="q1"),
            helper.make_node("DequantizeLinear", ["rq", "s", "z"], ["rd"], name="dq1"),
        ]
    nodes.append(
        helper.make_node("MaxPool", ["rd" if quantize_output else "r"], ["p"], name="pool", kernel_shape=[2, 2])
    )
    weights = {"s": scale, "z": zero, "w": np.ones((8, 4, 1, 1), np.int8)}
    return save(path, nodes, {"x": [2, 4, 6, 6]}, ["p"], weights)


@pytest.mark.parametrize("quantize_output", [True, False])
def test_q_dq_is_folded_and_says_int8(quantize_output, tmp_path):
    layers = {
        layer.name: layer for layer in layer_geometries(quantized(tmp_path / "m.onnx", quantize_output=quantize_output))
    }
    conv = layers["conv"]
    assert conv.quantized
    assert conv.weight == "w"
    assert conv.reads == Traffic(int8=2 * 4 * 36)
    assert conv.int8_out is quantize_output
    assert conv.writes == (Traffic(int8=2 * 8 * 36) if quantize_output else Traffic(floats=2 * 8 * 36))


def test_gemm_matmul_and_weights_on_the_left(tmp_path):
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["y"], name="gemm", transB=1),
        helper.make_node("MatMul", ["y", "b"], ["z"], name="right"),
        helper.make_node("MatMul", ["c", "z"], ["p"], name="left"),
    ]
    weights = {
        "a": np.ones((16, 8), np.float32),
        "b": np.ones((16, 32), np.float32),
        "c": np.ones((5, 6), np.float32),
    }
    layers = layer_geometries(save(tmp_path / "m.onnx", nodes, {"x": [6, 8]}, ["p"], weights))
    assert [(layer.m, layer.n, layer.k) for layer in layers] == [(6, 16, 8), (6, 32, 16), (32, 5, 6)]
    assert [layer.weight for layer in layers] == ["a", "b", "c"]


def test_transposed_and_grouped_convolutions(tmp_path):
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 2]),
        helper.make_node("Conv", ["y", "g"], ["z"], name="grouped", group=4),
    ]
    weights = {"w": np.zeros((8, 16, 2, 2), np.float32), "g": np.zeros((32, 4, 1, 1), np.float32)}
    up, grouped = layer_geometries(save(tmp_path / "m.onnx", nodes, {"x": [3, 8, 5, 5]}, ["z"], weights))
    assert (up.m, up.n, up.k, up.flops) == (3 * 25, 16 * 4, 8, 2 * 3 * 25 * 64 * 8)
    assert (grouped.m, grouped.n, grouped.k, grouped.groups) == (3 * 100, 8, 4, 4)
    assert grouped.flops == 2 * 300 * 32 * 4


@examples(25)
@given(
    batch=st.integers(1, 5),
    c_in=st.integers(1, 6),
    c_out=st.integers(1, 6),
    size=st.integers(3, 9),
    kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
)
def test_any_convolution_counts_as_torch_does(batch, c_in, c_out, size, kernel, stride, groups, tmp_path_factory):
    c_in, c_out = c_in * groups, c_out * groups
    path = conv_net(
        tmp_path_factory.getbasetemp() / "any.onnx",
        c_in=c_in,
        c_out=c_out,
        size=size,
        kernel=kernel,
        stride=stride,
        groups=groups,
        pruned=False,
    )
    model = torch.nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    (layer,) = layer_geometries(path, batch)
    assert layer.flops == torch_flops(model, torch.zeros(batch, c_in, size, size))
    assert layer.writes.floats == math.prod(model(torch.zeros(batch, c_in, size, size)).shape)


def test_shapes_computed_in_the_graph_are_folded(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"]),
        helper.make_node("Range", ["zero", "n", "one"], ["places"]),
        helper.make_node("Cast", ["places"], ["places_float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["places_float", "ones"], ["column"]),
        helper.make_node("Add", ["x", "column"], ["y"]),
        helper.make_node("MatMul", ["y", "w"], ["z"], name="product"),
    ]
    weights = {
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "ones": np.array([1], np.int64),
        "w": np.ones((4, 4), np.float32),
    }
    layers = layer_geometries(save(tmp_path / "m.onnx", nodes, {"x": ["n", 4]}, ["z"], weights), batch=7)
    assert [(layer.name, layer.m) for layer in layers if layer.is_product] == [("product", 7)]


@pytest.mark.parametrize(
    ("batch", "shapes", "fragments"),
    [
        (None, {}, ["dynamic dimensions without a value: x=batchx64x28x28", "--batch N"]),
        (0, {}, ["--batch 0"]),
        (2, {"y": [1]}, ["--shape y", "its inputs: x"]),
        (2, {"x": [2, 64]}, ["2 dimensions, but the input has 4"]),
        (None, {"x": [2, 32, 28, 28]}, ["fixed at 64, not 32"]),
    ],
)
def test_shapes_that_are_missing_or_wrong_are_refused(batch, shapes, fragments, tmp_path):
    with pytest.raises(ConfigError) as caught:
        network_geometry(conv_net(tmp_path / "m.onnx"), batch=batch, shapes=shapes)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_one_name_has_one_size(tmp_path):
    node = helper.make_node("Add", ["a", "b"], ["c"])
    path = save(tmp_path / "m.onnx", [node], {"a": ["n", 4], "b": ["n", 4]}, ["c"], {})
    assert network_geometry(path, shapes={"a": [3, 4]}).inputs == {"a": (3, 4), "b": (3, 4)}
    with pytest.raises(ConfigError, match="'n'"):
        network_geometry(path, shapes={"a": [3, 4], "b": [2, 4]})


def test_broken_files_are_one_line(tmp_path):
    for content in (b"", b"\x08\x07nonsense", b"PK"):
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(InputError) as caught:
            network_geometry(tmp_path / "m.onnx", batch=1)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        network_geometry(tmp_path / "none.onnx")
    with pytest.raises(InputError, match=r"holds no model\.onnx"):
        network_geometry(tmp_path)


def test_channels_that_do_not_fit_are_named(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    path = save(tmp_path / "m.onnx", nodes, {"x": [1, 3, 8, 8]}, ["y"], {"w": np.ones((4, 5, 1, 1), np.float32)})
    with pytest.raises(InputError, match="'conv'"):
        network_geometry(path)


def test_constants_alone_are_no_layer(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["w"], ["y"])], {}, ["y"], {"w": np.ones(4, np.float32)})
    with pytest.raises(InputError, match="no layer"):
        network_geometry(path)


def test_weights_stay_on_disk_and_functions_are_inlined(tmp_path):
    body = helper.make_function(
        "own",
        "Block",
        ["a", "w"],
        ["b"],
        [helper.make_node("MatMul", ["a", "w"], ["b"])],
        [helper.make_opsetid("", 20)],
    )
    graph = helper.make_graph(
        [helper.make_node("Block", ["x", "w"], ["y"], domain="own", name="call")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((64, 32), np.float32), "w")],
    )
    model = helper.make_model(
        graph,
        functions=[body],
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("own", 1)],
        ir_version=10,
    )
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    (layer,) = layer_geometries(tmp_path / "m.onnx", 5)
    assert (layer.m, layer.n, layer.k, layer.weight) == (5, 32, 64, "w")
