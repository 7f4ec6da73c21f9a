"""Where Q/DQ pairs go. Each rule is a function of its own; a placement is what they agree on.

Sources: NVIDIA's TensorRT documentation on explicit quantization (inputs of convolutions and matrix products; the skip
input of a residual addition, so that convolution, addition and ReLU become one INT8 kernel), the A100 profiles of
TensorRT's engine explorer (quantizing the skip input took ResNet-18 from 0.88 to 0.55 ms, quantizing around the global
pool to 0.50), and for sparse kernels the observation that a sparse INT8 product is only chosen when its output stays
INT8 (NVIDIA/Model-Optimizer pull request 1664).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import onnx_ir as ir

from nm2trt.calibration.graph import FLOATS, Graph, Layer, consumers
from nm2trt.onnx_tools.constants import resolve

GRAPH_OUTPUT = -1
"""Node index in an edge that leads to the graph's own output."""

Edge = tuple[int, int]
"""(node, input): who reads the dequantized tensor. (GRAPH_OUTPUT, k): output k of the graph."""

_EPILOGUE = ("Relu", "Clip")
_TRANSPARENT = (
    *("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Gather"),
    *("Split", "Expand", "DepthToSpace", "SpaceToDepth"),
)
"""Quantization commutes with these, so TensorRT moves a Q behind them up to their producer."""


@dataclass(slots=True)
class Placement:
    """Which tensors are quantized, for whom, and why."""

    layers: tuple[Layer, ...]
    """Those that compute in INT8: their weights are quantized, too."""
    edges: dict[str, list[Edge]] = field(default_factory=dict)
    """Tensor -> who reads it dequantized."""
    rules: dict[str, list[str]] = field(default_factory=dict)
    """Tensor -> names of the rules that placed it."""
    one_scale: list[set[str]] = field(default_factory=list)
    """Sets of tensors that share a scale."""

    def add(self, tensor: str, edge: Edge, rule: str) -> None:
        """Quantize `tensor` for one reader."""
        edges = self.edges.setdefault(tensor, [])
        if edge not in edges:
            edges.append(edge)
        rules = self.rules.setdefault(tensor, [])
        if rule not in rules:
            rules.append(rule)

    def has(self, tensor: str, edge: Edge) -> bool:
        """Tell whether that reader gets it dequantized."""
        return edge in self.edges.get(tensor, ())


@dataclass(frozen=True, slots=True)
class Rule:
    """One pass over a graph that adds to a placement."""

    name: str
    does: str
    apply: Callable[[Graph, Placement, Collection[str]], None]
    """Takes graph, placement, and names of the weights that hold a pattern that sparse kernels take."""


def layer_inputs(graph: Graph, placement: Placement, _sparse: Collection[str]) -> None:
    """Quantize the activation that each chosen Conv, ConvTranspose, Gemm and MatMul reads."""
    for layer in placement.layers:
        value = graph.nodes[layer.node].inputs[layer.data_input]
        if value is not None and value.name:
            placement.add(value.name, (layer.node, layer.data_input), "layer-input")


def residual_skips(graph: Graph, placement: Placement, _sparse: Collection[str]) -> None:
    """Quantize the skip input of each addition whose other input comes straight out of a chosen convolution.

    That other input stays as it is: convolution, addition and activation then fuse into one INT8 kernel. Where both
    come out of convolutions (a projection shortcut), the one with more layers behind it is the main branch.
    """
    depth = graph.depths
    chosen = {layer.node for layer in placement.layers if layer.op == "Conv"}
    for index, node in enumerate(graph.nodes):
        if node.op_type != "Add" or any(graph.constant(value) for value in node.inputs):
            continue
        branches = [_convolution_behind(graph, value) for value in node.inputs]
        candidates = [side for side in (0, 1) if branches[side] in chosen and _sole_reader(graph, node, side)]
        if not candidates:
            continue
        main = max(candidates, key=lambda side: (depth[branches[side]], -side))
        skip = node.inputs[1 - main]
        if skip is not None and skip.name and _same_shape(node):
            placement.add(skip.name, (index, 1 - main), "residual-skip")


def global_pool_inputs(graph: Graph, placement: Placement, _sparse: Collection[str]) -> None:
    """Quantize what global pooling reads: GlobalAveragePool, or ReduceMean over the image's axes.

    Its output is quantized by the rule of the layer behind it, so the pool lies between two Q/DQ pairs.
    """
    for index, node in enumerate(graph.nodes):
        value = node.inputs[0] if node.inputs else None
        if value is not None and value.name and _is_global_pool(graph, node) and _is_float(value):
            placement.add(value.name, (index, 0), "global-pool")


def concat_scales(graph: Graph, placement: Placement, _sparse: Collection[str]) -> None:
    """Give all inputs of a Concat whose output is quantized one Q/DQ scale, the output's.

    Then concatenating is copying INT8 values. Works backwards, so that a Concat of Concats shares one scale.
    """
    for index in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[index]
        output = node.outputs[0] if node.outputs else None
        if node.op_type != "Concat" or output is None or output.name not in placement.edges:
            continue
        if any(value is None or graph.constant(value) or not _is_float(value) for value in node.inputs):
            continue
        group = {output.name}
        for side, value in enumerate(node.inputs):
            if value is not None and value.name:
                placement.add(value.name, (index, side), "concat")
                group.add(value.name)
        merged = [other for other in placement.one_scale if other & group]
        placement.one_scale = [other for other in placement.one_scale if not other & group]
        placement.one_scale.append(group.union(*merged))


def sparse_outputs(graph: Graph, placement: Placement, sparse: Collection[str]) -> None:
    """Quantize the output of each N:M layer for every reader that is not INT8 already.

    The output is taken behind what TensorRT fuses into the layer: batch norm, bias, the residual addition, ReLU. A
    product that has to end in FP16 is computed by a dense kernel.
    """
    for layer in placement.layers:
        if layer.weight not in sparse:
            continue
        end = output_of(graph, layer)
        if not end.name or not _is_float(end):
            continue
        for node, side in consumers(end):
            index = graph.place.get(id(node))
            if index is not None and not _is_int8_reader(graph, placement, end, node, side):
                placement.add(end.name, (index, side), "sparse-output")
        for number, value in enumerate(graph.model.graph.outputs):
            if value is end:
                placement.add(end.name, (GRAPH_OUTPUT, number), "sparse-output")


LAYER_INPUTS = Rule("layer-input", "the activation that a convolution or matrix product reads", layer_inputs)
RESIDUAL_SKIPS = Rule("residual-skip", "the skip input of a residual addition behind a convolution", residual_skips)
GLOBAL_POOLS = Rule("global-pool", "the input of global pooling", global_pool_inputs)
CONCATS = Rule("concat", "the inputs of a Concat, with the output's scale", concat_scales)
SPARSE_OUTPUTS = Rule("sparse-output", "the output of an N:M layer whose reader is not INT8", sparse_outputs)

PLACEMENTS: dict[str, tuple[Rule, ...]] = {
    "default": (LAYER_INPUTS, RESIDUAL_SKIPS, GLOBAL_POOLS, CONCATS),
    "sparse": (LAYER_INPUTS, RESIDUAL_SKIPS, GLOBAL_POOLS, SPARSE_OUTPUTS, CONCATS),
    "minimal": (LAYER_INPUTS,),
}
"""Name of `--placement` -> its rules, in their order."""


def place(graph: Graph, rules: tuple[Rule, ...], layers: tuple[Layer, ...], sparse: Collection[str]) -> Placement:
    """Apply the rules.

    Args:
        graph: The float graph.
        rules: One of `PLACEMENTS`, or a choice of one's own.
        layers: Those to compute in INT8.
        sparse: Names of the weights that hold a pattern that sparse kernels take.
    """
    placement = Placement(layers=layers)
    for rule in rules:
        rule.apply(graph, placement, sparse)
    return placement


def output_of(graph: Graph, layer: Layer) -> ir.Value:
    """Return a layer's output behind the operators that TensorRT fuses into it."""
    value = graph.output(layer.node)
    while True:
        readers = list(consumers(value))
        if len(readers) != 1 or value in graph.model.graph.outputs:
            return value
        node, side = readers[0]
        if id(node) not in graph.place or not node.outputs:
            return value
        other = node.inputs[1 - side] if node.op_type == "Add" else None
        fused = (
            node.op_type in _EPILOGUE
            or (node.op_type == "BatchNormalization" and side == 0)
            or (other is not None and graph.constant(other))
            or (other is not None and layer.op == "Conv" and _is_main(graph, node, side))
        )
        if not fused:
            return value
        value = node.outputs[0]


def ends_in_int8(graph: Graph, placement: Placement, value: ir.Value) -> bool:
    """Tell whether everything that reads a tensor reads it quantized, also behind operators that only move values."""
    outputs = [k for k, output in enumerate(graph.model.graph.outputs) if output is value]
    readers = list(consumers(value))
    if not outputs and not readers:
        return False
    return all(placement.has(str(value.name), (GRAPH_OUTPUT, k)) for k in outputs) and all(
        _is_int8_reader(graph, placement, value, node, side) for node, side in readers
    )


def _is_int8_reader(graph: Graph, placement: Placement, value: ir.Value, node: ir.Node, side: int) -> bool:
    index = graph.place.get(id(node))
    if index is None:
        return False
    if placement.has(str(value.name), (index, side)):
        return True
    return node.op_type in _TRANSPARENT and side == 0 and all(ends_in_int8(graph, placement, v) for v in node.outputs)


def _convolution_behind(graph: Graph, value: ir.Value | None) -> int | None:
    """Convolution that a value comes out of, perhaps through a batch norm."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "BatchNormalization" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return graph.place.get(id(node)) if node is not None and node.op_type == "Conv" else None


def _is_main(graph: Graph, node: ir.Node, side: int) -> bool:
    """Tell whether an addition's input is the branch that it fuses with."""
    branches = [_convolution_behind(graph, value) for value in node.inputs]
    if branches[side] is None:
        return False
    if branches[1 - side] is None:
        return True
    return max((0, 1), key=lambda at: (graph.depths[branches[at]], -at)) == side


def _sole_reader(graph: Graph, node: ir.Node, side: int) -> bool:
    value = node.inputs[side]
    return value is not None and len(list(consumers(value))) == 1 and value not in graph.model.graph.outputs


def _same_shape(node: ir.Node) -> bool:
    first, second = (value.shape if value is not None else None for value in node.inputs)
    return first is None or second is None or len(first) == len(second)


def _is_float(value: ir.Value) -> bool:
    return value.dtype in FLOATS


def _is_global_pool(graph: Graph, node: ir.Node) -> bool:
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type != "ReduceMean" or node.inputs[0] is None or node.inputs[0].shape is None:
        return False
    rank = len(node.inputs[0].shape)
    axes = _axes(graph, node)
    return rank in (4, 5) and axes is not None and sorted(axis % rank for axis in axes) == list(range(2, rank))


def _axes(graph: Graph, node: ir.Node) -> list[int] | None:
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    constant = resolve(node.inputs[1], graph.path, parameter=True)
    return None if constant is None else [int(axis) for axis in constant.value().reshape(-1)]
