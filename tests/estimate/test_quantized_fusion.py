"""Q/DQ graphs: which convolution a residual sum joins, and which QuantizeLinear is a kernel of its own."""

import numpy as np
import pytest
from estimate_graphs import save, two_of_four
from onnx import helper

from nm2trt.estimate.gpus import find_gpu
from nm2trt.estimate.network import estimate_network
from nm2trt.estimate.network_layers import network_geometry

GPU = find_gpu("a100-pcie-80gb")


class Block:
    """A residual block with a downsample branch, quantized as `nm2trt calibrate` places its Q/DQ pairs."""

    def __init__(self):
        self.nodes = []
        self.weights = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}

    def quantized(self, name, x):
        self.nodes += [
            helper.make_node("QuantizeLinear", [x, "s", "z"], [f"{name}.q"], name=f"{name}.quantize"),
            helper.make_node("DequantizeLinear", [f"{name}.q", "s", "z"], [f"{name}.d"], name=f"{name}.dequantize"),
        ]
        return f"{name}.d"

    def conv(self, name, x, c_in, c_out, kernel, stride=1):
        weight = np.clip(np.round(20 * two_of_four(c_out, c_in, kernel, kernel)), -127, 127).astype(np.int8)
        self.weights[f"{name}.weight"] = weight
        self.nodes += [
            helper.make_node("DequantizeLinear", [f"{name}.weight", "s", "z"], [f"{name}.wd"], name=f"{name}.wdq"),
            helper.make_node(
                "Conv", [x, f"{name}.wd"], [f"{name}.y"], name=name, strides=[stride] * 2, pads=[kernel // 2] * 4
            ),
        ]
        return f"{name}.y"

    def node(self, op, name, *inputs):
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}.y"], name=name))
        return f"{name}.y"


def residual(path, *, downsample_last, quantize_branch=True, float_reader=False):
    block = Block()
    x = block.quantized("in", "x")

    def branch():
        y = block.conv("downsample", x, 64, 128, 1, 2)
        return block.quantized("branch", y) if quantize_branch else y

    def body():
        y = block.node("Relu", "relu1", block.conv("conv1", x, 64, 128, 3, 2))
        return block.conv("conv2", block.quantized("mid", y), 128, 128, 3)

    main, side = (body(), branch()) if downsample_last else (branch(), body())[::-1]
    y = block.node("Relu", "relu2", block.node("Add", "add", main, side))
    end = block.quantized("out", y)
    outputs = [block.conv("next", end, 128, 128, 3)]
    if float_reader:
        outputs.append(block.node("GlobalAveragePool", "head", y))
    return save(path, block.nodes, {"x": ["n", 64, 56, 56]}, outputs, block.weights)


@pytest.mark.parametrize("downsample_last", [True, False])
def test_a_sum_joins_the_convolution_that_reaches_it_in_float(downsample_last, tmp_path):
    path = residual(tmp_path / "m.onnx", downsample_last=downsample_last)
    layers = {layer.name: layer for layer in network_geometry(path, batch=32).layers}
    assert "Add" in layers["conv2"].op_types
    assert "Add" not in layers["downsample"].op_types
    for name in ("conv1", "conv2", "downsample"):
        assert layers[name].int8_out, name
    pixels = 32 * 28 * 28 * 128
    assert (layers["conv2"].residual.int8, layers["conv2"].residual.floats) == (pixels, 0)
    assert (layers["conv2"].writes.int8, layers["conv2"].writes.floats) == (pixels, 0)
    found = {layer.geometry.name: layer for layer in estimate_network(path, GPU, batch=32).layers}
    assert found["conv2"].why is None or found["conv2"].why.code != "float-output"


def test_a_branch_in_float_is_read_in_float(tmp_path):
    path = residual(tmp_path / "m.onnx", downsample_last=False, quantize_branch=False)
    layers = {layer.name: layer for layer in network_geometry(path, batch=32).layers}
    assert "Add" in layers["conv2"].op_types
    assert layers["conv2"].residual.floats == 32 * 28 * 28 * 128
    assert not layers["downsample"].int8_out


def test_quantization_of_a_tensor_that_is_read_in_float_too_is_a_kernel(tmp_path):
    path = residual(tmp_path / "m.onnx", downsample_last=False, float_reader=True)
    layers = {layer.name: layer for layer in network_geometry(path, batch=32).layers}
    pixels = 32 * 28 * 28 * 128
    own = layers["out.quantize"]
    assert own.kind == "memory"
    assert (own.reads.floats, own.writes.int8) == (pixels, pixels)
    # The convolution itself writes the float tensor, and no INT8 beside it.
    assert (layers["conv2"].writes.floats, layers["conv2"].writes.int8) == (pixels, 0)
    assert not layers["conv2"].int8_out
    plain = residual(tmp_path / "p.onnx", downsample_last=False)
    assert "out.quantize" not in {layer.name for layer in network_geometry(plain, batch=32).layers}


def test_the_networks_input_is_quantized_by_a_kernel_of_its_own(tmp_path):
    path = residual(tmp_path / "m.onnx", downsample_last=True)
    first = network_geometry(path, batch=1).layers[0]
    assert (first.name, first.kind) == ("in.quantize", "memory")
