"""Writes a placement into a graph as Q/DQ pairs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from nm2trt.calibration.graph import Graph, Layer
from nm2trt.calibration.placement import GRAPH_OUTPUT, Placement
from nm2trt.calibration.ranges import LEVELS

Storage = Literal["qdq", "int8"]
STORAGES: tuple[Storage, ...] = ("qdq", "int8")
"""qdq: float weights behind Q and DQ, which the builder folds. int8: stored INT8 behind a DQ, a quarter of the size."""

CALIBRATION_KEY = "nm2trt.calibration"
"""ONNX metadata: a JSON object with method, placement and weights."""


def weight_scales(weight: NDArray[Any], axis: int) -> NDArray[np.float32]:
    """Return one scale per output channel: the largest magnitude over 127; 1 for a channel of zeros.

    Args:
        weight: Floating point, finite.
        axis: Of the output channels.
    """
    others = tuple(index for index in range(weight.ndim) if index != axis)
    largest = np.abs(weight.astype(np.float32)).max(axis=others)
    scales: NDArray[np.float32] = np.where(largest > 0, largest / LEVELS, 1.0).astype(np.float32)
    # The largest weight of a tiny channel over 127 may be 0 in float32.
    return np.maximum(scales, np.finfo(np.float32).tiny)


def quantized_weight(weight: NDArray[Any], scales: NDArray[Any], axis: int) -> NDArray[np.int8]:
    """Round to INT8, half to even, as QuantizeLinear does; 0 stays 0."""
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
    scaled = weight.astype(np.float32) / scales.astype(np.float32).reshape(shape)
    result: NDArray[np.int8] = np.clip(np.rint(scaled), -LEVELS, LEVELS).astype(np.int8)
    return result


def insert(
    graph: Graph,
    placement: Placement,
    scales: Mapping[str, float],
    *,
    storage: Storage = "qdq",
    only: Collection[int] | None = None,
    note: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Return the graph with a Q/DQ pair on each tensor of the placement and on the weights of its layers.

    Args:
        graph: The float graph; it is not changed.
        placement: Where.
        scales: Tensor -> scale, larger than 0.
        storage: How weights are stored.
        only: Quantize the inputs and weights of these nodes alone (for sensitivity); None: the whole placement.
        note: Written into the file's metadata.
    """
    model = graph.fresh()
    writer = _Writer(model)
    nodes = list(model.graph)
    for layer in placement.layers:
        if only is None or layer.node in only:
            _quantize_weight(writer, nodes, graph, layer, storage)
    for tensor, edges in placement.edges.items():
        kept = [edge for edge in edges if only is None or edge[0] in only]
        if kept:
            _quantize_activation(writer, nodes, tensor, kept, scales[tensor])
    if note:
        model.metadata_props[CALIBRATION_KEY] = json.dumps(dict(note), sort_keys=True)
    _drop_unused(model)
    writer.take_names_over()
    proto: onnx.ModelProto = ir.to_proto(model)
    return proto


class _Writer:
    """Adds values with names that are free."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self._taken = {str(value.name) for node in model.graph for value in node.outputs}
        self._taken |= {str(name) for name in model.graph.initializers}
        self._taken |= {str(value.name) for value in model.graph.inputs}
        self.values = {str(value.name): value for node in model.graph for value in node.outputs}
        self.values |= {str(value.name): value for value in model.graph.inputs}
        self.pairs: dict[tuple[str, int], ir.Value] = {}
        self._heirs: list[tuple[ir.Value, str]] = []

    def free(self, name: str) -> str:
        found, number = name, 1
        while found in self._taken:
            found, number = f"{name}_{number}", number + 1
        self._taken.add(found)
        return found

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        name = self.free(name)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        self.graph.register_initializer(value)
        return value

    def heir(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Add a constant that is to take over the name of a weight, which the pattern's metadata and verify know."""
        value = self.constant(f"{name}_int8", array)
        self._heirs.append((value, name))
        return value

    def take_names_over(self) -> None:
        for value, name in self._heirs:
            if name not in self.graph.initializers:
                value.name = name

    def node(
        self, op: str, inputs: list[ir.Value], output: str, like: ir.Value, dtype: Any, axis: int | None
    ) -> ir.Node:
        attributes = {} if axis is None else {"axis": axis}
        node = ir.node(op, inputs, attributes=attributes, name=self.free(f"{output}_{op}"))
        value = node.outputs[0]
        value.name = self.free(output)
        value.type, value.shape = ir.TensorType(dtype), like.shape
        return node


def _quantize_weight(writer: _Writer, nodes: list[ir.Node], graph: Graph, layer: Layer, storage: Storage) -> None:
    node = nodes[layer.node]
    value = node.inputs[layer.weight_input]
    assert value is not None
    known = writer.pairs.get((str(value.name), layer.channel_axis))
    if known is not None:
        node.replace_input_with(layer.weight_input, known)
        return
    constant = graph.weight(layer)
    array = constant.value()
    dtype = ir.DataType.FLOAT16 if constant.graph_dtype == "float16" else ir.DataType.FLOAT
    scale_array = _typed(weight_scales(array, layer.channel_axis), dtype)
    base = layer.weight
    scale = writer.constant(f"{base}_scale", scale_array)
    zero = writer.constant(f"{base}_zero_point", np.zeros(scale_array.shape, np.int8))
    added = []
    if storage == "qdq":
        q = writer.node(
            "QuantizeLinear", [value, scale, zero], f"{base}_int8", value, ir.DataType.INT8, layer.channel_axis
        )
        added, stored = [q], q.outputs[0]
    else:
        stored = writer.heir(base, quantized_weight(array, scale_array, layer.channel_axis))
    dq = writer.node("DequantizeLinear", [stored, scale, zero], f"{base}_dequantized", value, dtype, layer.channel_axis)
    writer.graph.insert_before(node, [*added, dq])
    writer.pairs[str(value.name), layer.channel_axis] = dq.outputs[0]
    node.replace_input_with(layer.weight_input, dq.outputs[0])


def _quantize_activation(
    writer: _Writer, nodes: list[ir.Node], tensor: str, edges: list[tuple[int, int]], scale_of: float
) -> None:
    value = writer.values[tensor]
    dtype = value.dtype or ir.DataType.FLOAT
    scale = writer.constant(f"{tensor}_scale", _typed(np.asarray(scale_of, np.float32), dtype))
    zero = writer.constant(f"{tensor}_zero_point", np.zeros((), np.int8))
    q = writer.node("QuantizeLinear", [value, scale, zero], f"{tensor}_int8", value, ir.DataType.INT8, None)
    dq = writer.node("DequantizeLinear", [q.outputs[0], scale, zero], f"{tensor}_dequantized", value, dtype, None)
    producer = value.producer()
    if producer is not None:
        writer.graph.insert_after(producer, [q, dq])
    else:
        writer.graph.insert_before(writer.graph[0], [q, dq])
    for index, side in edges:
        if index != GRAPH_OUTPUT:
            nodes[index].replace_input_with(side, dq.outputs[0])
            continue
        # The graph's output keeps its name.
        name = value.name
        value.name = writer.free(f"{tensor}_float")
        dq.outputs[0].name = name
        writer.graph.outputs[side] = dq.outputs[0]


def _typed(array: NDArray[np.float32], dtype: Any) -> NDArray[Any]:
    if dtype != ir.DataType.FLOAT16:
        return array
    # A scale of 0 would divide by zero; the smallest float16 is 6e-8.
    return np.maximum(array, np.float32(6e-8)).astype(np.float16)


def _drop_unused(model: ir.Model) -> None:
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
