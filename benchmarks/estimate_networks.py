"""The networks whose layers were timed on A100s, as ONNX graphs without weight values: only shapes matter here.

UNet with a ResNet-34 encoder as segmentation_models_pytorch builds it, with the names of the record; ResNet-18 and
BERT-Large as their papers describe them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RESNET34, RESNET18 = (3, 4, 6, 3), (2, 2, 2, 2)


class Graph:
    """Adds nodes one after the other; weights are ConstantOfShape nodes, so a file holds kilobytes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(self, op: str, name: str, *inputs: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def weight(self, name: str, *shape: int) -> str:
        self.initializers.append(numpy_helper.from_array(np.array(shape, np.int64), f"{name}.shape"))
        self.nodes.append(helper.make_node("ConstantOfShape", [f"{name}.shape"], [name], name=f"{name}.make"))
        return name

    def conv(self, name: str, x: str, c_in: int, c_out: int, kernel: int, stride: int = 1) -> str:
        w = self.weight(f"{name}.weight", c_out, c_in, kernel, kernel)
        return self.add(
            "Conv", name, x, w, self.weight(f"{name}.bias", c_out), strides=[stride] * 2, pads=[kernel // 2] * 4
        )

    def linear(self, name: str, x: str, c_in: int, c_out: int) -> str:
        y = self.add("MatMul", name, x, self.weight(f"{name}.weight", c_in, c_out))
        return self.add("Add", f"{name}.add", y, self.weight(f"{name}.bias", c_out))

    def index(self, number: int) -> str:
        name = f"index.{number}"
        if all(tensor.name != name for tensor in self.initializers):
            self.initializers.append(numpy_helper.from_array(np.array(number, np.int64), name))
        return name

    def save(self, path: Path, inputs: dict[str, list], output: str, shape: list) -> Path:
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in inputs.items()]
        out = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "network", ports, [out], self.initializers)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
        return path


def encoder(graph: Graph, prefix: str, blocks: tuple[int, ...]) -> list[str]:
    """ResNet of basic blocks; returns stem and the output of each stage."""
    x = graph.add("Relu", f"{prefix}relu", graph.conv(f"{prefix}conv1", "x", 3, 64, 7, 2))
    features, c_in = [x], 64
    x = graph.add("MaxPool", f"{prefix}maxpool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, count in enumerate(blocks):
        c_out = 64 << stage
        for index in range(count):
            name, stride = f"{prefix}layer{stage + 1}.{index}", 2 if stage and not index else 1
            y = graph.add("Relu", f"{name}.relu1", graph.conv(f"{name}.conv1", x, c_in, c_out, 3, stride))
            y = graph.conv(f"{name}.conv2", y, c_out, c_out, 3)
            if stride > 1:
                x = graph.conv(f"{name}.downsample", x, c_in, c_out, 1, stride)
            x, c_in = graph.add("Relu", f"{name}.relu2", graph.add("Add", f"{name}.add", y, x)), c_out
        features.append(x)
    return features


def unet(path: Path, size: int = 256) -> Path:
    """smp.Unet("resnet34", classes=3)."""
    graph = Graph()
    features = encoder(graph, "encoder.", RESNET34)
    x, channels = features[-1], 512
    graph.initializers.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    skips = [*zip(features[-2::-1], (256, 128, 64, 64), strict=True), ("", 0)]
    for index, (width, (skip, extra)) in enumerate(zip((256, 128, 64, 32, 16), skips, strict=True)):
        name = f"decoder.blocks.{index}"
        x = graph.add("Resize", f"{name}.up", x, "", "scales", mode="nearest")
        x = graph.add("Concat", f"{name}.cat", x, skip, axis=1) if skip else x
        x = graph.add("Relu", f"{name}.relu1", graph.conv(f"{name}.conv1", x, channels + extra, width, 3))
        x = graph.add("Relu", f"{name}.relu2", graph.conv(f"{name}.conv2", x, width, width, 3))
        channels = width
    y = graph.conv("segmentation_head", x, 16, 3, 3)
    return graph.save(path, {"x": ["batch", 3, size, size]}, y, ["batch", 3, size, size])


def resnet18(path: Path) -> Path:
    """At 224 x 224, 1000 classes."""
    graph = Graph()
    x = graph.add("GlobalAveragePool", "avgpool", encoder(graph, "", RESNET18)[-1])
    x = graph.linear("fc", graph.add("Flatten", "flatten", x), 512, 1000)
    return graph.save(path, {"x": ["batch", 3, 224, 224]}, x, ["batch", 1000])


def quantized(path: Path) -> Path:
    """Put Q/DQ pairs before every product and the second operand of residual sums of a graph, in its file."""
    model = onnx.load(path)
    nodes, pairs = [], {}
    for name, value in (("scale", np.float32(0.1)), ("zero", np.int8(0))):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))

    def pair(tensor: str) -> str:
        if tensor not in pairs:
            pairs[tensor] = f"{tensor}.dq"
            nodes.append(helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [f"{tensor}.q"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}.q", "scale", "zero"], [f"{tensor}.dq"]))
        return pairs[tensor]

    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul"):
            node.input[:2] = [pair(tensor) for tensor in node.input[:2]]
        elif node.name.startswith("layer") and node.op_type == "Add":
            node.input[1] = pair(node.input[1])
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.save(model, path)
    return path


def bert(path: Path, layers: int = 24, width: int = 1024, heads: int = 16) -> Path:
    """BERT's encoder (Large by default) behind its embeddings; Q, K and V in one product, as TensorRT's demo does."""
    graph, x = Graph(), "x"
    graph.initializers += [
        numpy_helper.from_array(np.array([0, 0, 3, heads, width // heads], np.int64), "qkv_shape"),
        numpy_helper.from_array(np.array([0, 0, width], np.int64), "tokens_shape"),
    ]
    for index in range(layers):
        name = f"layer.{index}"
        qkv = graph.linear(f"{name}.attention.qkv", x, width, 3 * width)
        split = graph.add(
            "Transpose", f"{name}.heads", graph.add("Reshape", f"{name}.view", qkv, "qkv_shape"), perm=[2, 0, 3, 1, 4]
        )
        q, k, v = (
            graph.add("Gather", f"{name}.{part}", split, graph.index(number), axis=0)
            for number, part in enumerate("qkv")
        )
        scores = graph.add("MatMul", f"{name}.scores", q, graph.add("Transpose", f"{name}.kt", k, perm=[0, 1, 3, 2]))
        y = graph.add("MatMul", f"{name}.values", graph.add("Softmax", f"{name}.softmax", scores), v)
        y = graph.add("Transpose", f"{name}.back", y, perm=[0, 2, 1, 3])
        y = graph.linear(
            f"{name}.attention.output", graph.add("Reshape", f"{name}.tokens", y, "tokens_shape"), width, width
        )
        x = _norm(graph, f"{name}.norm1", graph.add("Add", f"{name}.add1", y, x), width)
        y = graph.add("Gelu", f"{name}.gelu", graph.linear(f"{name}.intermediate", x, width, 4 * width))
        y = graph.linear(f"{name}.output", y, 4 * width, width)
        x = _norm(graph, f"{name}.norm2", graph.add("Add", f"{name}.add2", y, x), width)
    return graph.save(path, {"x": ["batch", "tokens", width]}, x, ["batch", "tokens", width])


def linear(path: Path, c_in: int, c_out: int) -> Path:
    """One fully connected layer."""
    graph = Graph()
    y = graph.linear("linear", "x", c_in, c_out)
    return graph.save(path, {"x": ["batch", c_in]}, y, ["batch", c_out])


def _norm(graph: Graph, name: str, x: str, width: int) -> str:
    scale, bias = graph.weight(f"{name}.weight", width), graph.weight(f"{name}.bias", width)
    return graph.add("LayerNormalization", name, x, scale, bias, axis=-1)
