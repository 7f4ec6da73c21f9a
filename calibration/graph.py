"""A float ONNX graph as calibration sees it: its layers, its ports, who reads what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from nm2trt.errors import InputError
from nm2trt.layers.onnx_reader import open_graph, weight_use
from nm2trt.onnx_tools.constants import Constant, one_line, resolve
from nm2trt.onnx_tools.node_names import name_nodes
from nm2trt.onnx_tools.opset import raise_opset
from nm2trt.selectors import match_any, selectable_names

FLOATS = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}
QUANTIZED_OPS = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm"),
    *("ConvInteger", "MatMulInteger"),
)
OLDEST_OPSET = 13
"""Quantization per channel came with it."""
_OPSET_FLOAT16 = 19
"""Quantization of float16 came with it."""
_LARGEST_BYTES = 2**31 - 2**20


@dataclass(frozen=True, slots=True)
class Port:
    """One input of the graph; a dynamic size is None."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    batch_axis: int | None = 0
    """Where the free batch is; None where the shape has none."""

    @property
    def batch(self) -> int | None:
        """Fixed size of the batch, or None where it is free."""
        if self.batch_axis is not None:
            return self.shape[self.batch_axis]
        return self.shape[0] if self.shape else 1

    @property
    def has_samples_first(self) -> bool:
        """Whether a fixed first axis counts samples: so it is in files with a fixed batch, of two axes and more."""
        return len(self.shape) > 1 and self.batch_axis is None


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or matrix product with a constant weight."""

    node: int
    """Place in the graph's order."""
    name: str
    """Of the node."""
    op: str
    weight: str
    """Tensor name, as `nm2trt verify` prints it."""
    weight_input: int
    data_input: int
    shape: tuple[int, ...]
    channel_axis: int
    """Of the weight: the output channels, which get a scale each."""

    def matches(self, globs: tuple[str, ...]) -> bool:
        """Tell whether a glob matches its node's or its weight's name."""
        return match_any(selectable_names(self.name, self.weight), globs)


class Graph:
    """An opened ONNX file, functions inlined and external data loaded.

    Args:
        proto: The model.
        path: Where it came from, for error lines.

    Raises:
        InputError: The model is quantized, of an opset before 13, in a type that cannot be quantized, or has nothing
            to quantize.
    """

    def __init__(self, proto: onnx.ModelProto, path: Path) -> None:
        self.proto = proto
        self.path = path
        self.model = ir.from_proto(proto)
        _infer_shapes(self.model)
        self.nodes: list[ir.Node] = list(self.model.graph)
        self.place = {id(node): index for index, node in enumerate(self.nodes)}
        _check_opset(self.model, path)

    @cached_property
    def layers(self) -> list[Layer]:
        """Every layer that could be quantized, in the graph's order."""
        return [layer for index in range(len(self.nodes)) if (layer := self._layer(index)) is not None]

    @cached_property
    def ports(self) -> list[Port]:
        """Inputs that a caller feeds."""
        initializers = self.model.graph.initializers
        return read_ports([value for value in self.model.graph.inputs if value.name not in initializers], self.path)

    @cached_property
    def depths(self) -> dict[int | None, int]:
        """Node -> most layers on any way to it, itself among them; 0 for None."""
        layers = {layer.node for layer in self.layers}
        depth: dict[int | None, int] = {None: 0}
        for index, node in enumerate(self.nodes):
            producers = (value.producer() for value in node.inputs if value is not None)
            before = max((depth.get(self.place.get(id(node)), 0) for node in producers if node is not None), default=0)
            depth[index] = before + (index in layers)
        return depth

    def fresh(self) -> ir.Model:
        """Give a copy to edit, whose nodes are in the same order; weights are shared."""
        model = ir.from_proto(self.proto)
        _infer_shapes(model)
        return model

    def bytes_without(self) -> bytes:
        """Serialize the float model."""
        content: bytes = self.proto.SerializeToString()
        return content

    def weight(self, layer: Layer) -> Constant:
        """Return a layer's weight as its operator sees it."""
        constant = resolve(self.nodes[layer.node].inputs[layer.weight_input], self.path)
        assert constant is not None
        return constant

    def output(self, node: int) -> ir.Value:
        """Return the first output of a node."""
        return self.nodes[node].outputs[0]

    def constant(self, value: ir.Value | None) -> bool:
        """Tell whether a value is a stored constant, perhaps behind layout nodes."""
        return value is not None and resolve(value, self.path) is not None

    def name_of(self, index: int) -> str:
        """Return a node's name, or what stands for it."""
        node = self.nodes[index]
        return str(node.name or node.outputs[0].name or f"{node.op_type} {index}")

    def _layer(self, index: int) -> Layer | None:
        node = self.nodes[index]
        use = weight_use(node, self.path)
        if use is None or len(use.constant.shape) < 2 or use.constant.graph_dtype not in FLOATS.values():
            return None
        side = 1 if node.op_type in ("Conv", "ConvTranspose") or self.constant(node.inputs[1]) else 0
        if self.constant(node.inputs[1 - side]):
            return None
        axis = _channel_axis(node, side, len(use.constant.shape))
        if axis is None or 0 in use.constant.shape:
            return None
        return Layer(
            node=index,
            name=self.name_of(index),
            op=node.op_type,
            weight=use.constant.name,
            weight_input=side,
            data_input=1 - side,
            shape=use.constant.shape,
            channel_axis=axis,
        )


def open_float_graph(path: Path) -> Graph:
    """Open an ONNX file for calibration.

    Raises:
        InputError: It is no ONNX model, is quantized already, or holds nothing to quantize.
    """
    proto = load_proto(path)
    refuse_quantized(proto, path)
    graph = Graph(proto, path)
    if not graph.layers:
        raise InputError(
            "has no convolution or matrix product with a constant weight in float32 or float16: nothing to quantize",
            where=path,
        )
    return graph


def load_proto(path: Path) -> onnx.ModelProto:
    """Read a whole model: functions inlined, external data loaded, opset 13 or newer.

    Raises:
        InputError: It is no ONNX model, or larger than 2 GiB with its weights.
    """
    model = open_graph(path).model
    try:
        ir.external_data.load_to_model(model)
        # The compile check and `nm2trt inspect` tell layers by these names.
        name_nodes(model)
        proto = ir.to_proto(model)
    except Exception as error:  # noqa: BLE001 -- whatever missing or broken external data make the library raise
        raise InputError(f"its weights cannot be read: {one_line(error)}", where=path) from None
    if proto.ByteSize() > _LARGEST_BYTES:
        raise InputError("is larger than 2 GiB with its weights, which ONNX Runtime takes in one piece", where=path)
    return raise_opset(proto, OLDEST_OPSET, path)


def refuse_quantized(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse a model that is quantized already; a zero point that is not 0 is named.

    Raises:
        InputError: It is.
    """
    quantized = [node for node in proto.graph.node if node.op_type in QUANTIZED_OPS]
    if not quantized:
        return
    asymmetric = first_asymmetric(proto)
    hint = "calibrate the float model, or take the quantization out and calibrate anew with --resymmetrize"
    first = quantized[0]
    if asymmetric is not None:
        node, zero_point = asymmetric
        raise InputError(
            f"is quantized already, and asymmetrically: {node.op_type} {node.name or node.output[0]!r} has zero point "
            f"{zero_point}, and TensorRT takes only 0",
            where=path,
            hint=hint,
        )
    raise InputError(
        f"is quantized already: {len(quantized)} nodes, first {first.op_type} {first.name or first.output[0]!r}",
        where=path,
        hint=hint,
    )


def first_asymmetric(proto: onnx.ModelProto) -> tuple[onnx.NodeProto, int] | None:
    """Find the first Q or DQ node with a zero point that is not 0, and that zero point."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            stored[node.output[0]] = node.attribute[0].t
    for node in proto.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        zero = stored.get(node.input[2])
        if zero is None:
            continue
        values = onnx.numpy_helper.to_array(zero).reshape(-1)
        if values.any():
            return node, int(values[values != 0][0])
    return None


def consumers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Every node that reads a value, with the input's index."""
    for use in value.uses():
        yield use.node, use.idx


def _channel_axis(node: ir.Node, side: int, rank: int) -> int | None:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        # With groups, one index of axis 1 stands for several output channels.
        return 1 if _int(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        transposed = _int(node, "transB" if side else "transA", 0)
        return 1 - side if transposed else side
    return rank - 1 if side else rank - 2


def _int(node: ir.Node, name: str, default: int) -> int:
    return int(node.attributes[name].as_int()) if name in node.attributes else default


def read_ports(values: Sequence[ir.Value], path: Path) -> list[Port]:
    """Inputs with their batch axis: the free first one, or the axis that has its name in an input where none is.

    Raises:
        InputError: An input has no type or shape.
    """
    names, shapes = set(), {}
    for value in values:
        if value.dtype is None or value.shape is None:
            raise InputError(f"input {value.name!r} has no type or shape", where=path, hint="export the model again")
        shapes[str(value.name)] = [size if isinstance(size, int) else size.value or None for size in value.shape]
    first = [shape[0] for shape in shapes.values() if shape and not isinstance(shape[0], int)]
    names = {size for size in first if size is not None}
    if not first:
        every = {size for shape in shapes.values() for size in shape if isinstance(size, str)}
        names = every if len(every) == 1 else set()
    ports = []
    for value in values:
        shape = shapes[str(value.name)]
        axis = 0 if shape and not isinstance(shape[0], int) else None
        if axis is None:
            axis = next((place for place, size in enumerate(shape) if size in names), None)
        assert value.dtype is not None
        free = tuple(size if isinstance(size, int) else None for size in shape)
        ports.append(Port(str(value.name), str(value.dtype.numpy().name), free, axis))
    return ports


def _infer_shapes(model: ir.Model) -> None:
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass()(model)


def _check_opset(model: ir.Model, path: Path) -> None:
    version = model.opset_imports.get("", 1)
    types: set[Any] = {value.dtype for value in model.graph.initializers.values()}
    if ir.DataType.BFLOAT16 in types:
        raise InputError(
            "has bfloat16 weights, which ONNX Runtime's CPU kernels do not take",
            where=path,
            hint="calibrate the float32 model and export the result with --precision",
        )
    if ir.DataType.FLOAT16 in types and version < _OPSET_FLOAT16:
        raise InputError(
            f"is float16 of opset {version}, and float16 is quantized since opset {_OPSET_FLOAT16}",
            where=path,
            hint="calibrate the float32 model and export the result with --precision fp16",
        )
