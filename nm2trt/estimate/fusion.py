"""Group a graph's nodes into layers as one kernel each would run them. See geometry.py for what that means."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import TensorProto

from nm2trt.errors import InputError
from nm2trt.estimate.geometry import LayerGeometry, Traffic
from nm2trt.estimate.products import Product, attention_product, product_of
from nm2trt.estimate.torch_names import torch_name_of
from nm2trt.onnx_tools.shape_inference import Shape, ShapedGraph
from nm2trt.onnx_tools.tensors import as_text

VIEWS = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast", "DequantizeLinear"))
POINTWISE = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Where", "Neg", "Abs", "Sqrt", "Reciprocal", "Exp"),
        *("Log", "Erf", "Tanh", "Sigmoid", "Relu", "LeakyRelu", "PRelu", "Clip", "Elu", "Selu", "Celu", "Gelu", "Mish"),
        *("HardSigmoid", "HardSwish", "Softplus", "Softsign", "ThresholdedRelu", "BatchNormalization", "IsNaN", "Not"),
        *("And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Floor", "Ceil", "Round"),
        *("Sign", "Sin", "Cos", "Mod", "QuantizeLinear", "Transpose", "Expand", "Swish"),
    )
)
REDUCTIONS = frozenset(
    (
        *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "InstanceNormalization"),
        *(
            "GroupNormalization",
            "Softmax",
            "LogSoftmax",
            "ReduceMean",
            "ReduceSum",
            "ReduceMax",
            "ReduceL2",
            "ReduceMin",
        ),
    )
)
PICKS = frozenset(("Gather", "GatherElements", "GatherND", "Slice", "Split"))
"""They read no more than they write."""
UNCOUNTED = frozenset(
    (
        *("LSTM", "GRU", "RNN", "Einsum", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm"),
        *("DeformConv", "FusedConv", "FusedGemm", "FusedMatMul", "MultiHeadAttention", "GroupQueryAttention"),
    )
)
_FLOATS: frozenset[int] = frozenset(
    (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, 0)
)
_SIZES: dict[int, int] = {TensorProto.INT64: 8, TensorProto.UINT64: 8, TensorProto.INT32: 4, TensorProto.UINT32: 4}


@dataclass(slots=True)
class _Group:
    index: int
    product: Product | None = None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    elements: int = 0
    """Of the output of its last node."""
    softmax: bool = False
    closed: bool = False
    """Nothing may be fused behind it."""


def fused_layers(graph: ShapedGraph) -> tuple[tuple[LayerGeometry, ...], tuple[str, ...]]:
    """Lay out the layers of a graph in its order, and say what was not counted.

    Raises:
        InputError: The shapes around a product are unknown or do not fit; or there is no layer at all.
    """
    fusion = _Fusion(graph)
    for node in graph.node_list():
        fusion.add(node)
    layers = tuple(fusion.layers())
    if not layers:
        raise InputError("holds no layer that computes anything from its inputs", where=graph.path)
    uncounted = Counter(node.op_type for group in fusion.groups for node in group.nodes if _uncounted(node))
    notes = [f"{count} {as_text(op)}: counted as memory traffic only" for op, count in uncounted.items()]
    return layers, tuple(notes)


def _uncounted(node: onnx.NodeProto) -> bool:
    return node.domain not in ("", "ai.onnx") or node.op_type in UNCOUNTED


class _Fusion:
    def __init__(self, graph: ShapedGraph) -> None:
        self.graph = graph
        self.groups: list[_Group] = []
        self._alias: dict[str, str] = {}
        self._maker: dict[str, _Group] = {}
        self._dequantized: set[str] = set()
        self._quantized: set[str] = set()
        self._readers: dict[str, list[str]] = {}
        for node in graph.node_list():
            for name in node.input:
                self._readers.setdefault(name, []).append(node.op_type)

    def add(self, node: onnx.NodeProto) -> None:
        """Put a node into a group."""
        outputs = [name for name in node.output if name]
        if not outputs or all(name in self.graph.constants for name in outputs) or not node.input:
            return
        if node.op_type in VIEWS or node.op_type in ("Shape", "Size"):
            self._view(node, outputs)
            return
        if node.op_type == "QuantizeLinear":
            self._quantized.add(outputs[0])
            if self._is_read_as_float(node.input[0]):
                # Its maker writes the float tensor, so this one reads it again.
                self._put(node, self._new(None), outputs)
                return
        product = product_of(node, self.graph, self.source)
        group = self._group_of_product(node, product) if product is not None else self._group_of(node)
        self._put(node, group, outputs)

    def _put(self, node: onnx.NodeProto, group: _Group, outputs: list[str]) -> None:
        group.nodes.append(node)
        group.elements = math.prod(self.graph.shapes.get(outputs[0], (0,)))
        for name in outputs:
            self._maker[name] = group

    def _is_read_as_float(self, name: str) -> bool:
        """Whether anything but QuantizeLinear needs a computed tensor."""
        if self._maker.get(self.source(name)) is None:
            return False
        others = [op for op in self._readers.get(name, ()) if op not in ("QuantizeLinear", "Shape", "Size")]
        return bool(others) or name in self.graph.outputs

    def source(self, name: str) -> str:
        """The tensor behind views."""
        while name in self._alias:
            name = self._alias[name]
        return name

    def _view(self, node: onnx.NodeProto, outputs: list[str]) -> None:
        if node.op_type == "DequantizeLinear":
            self._dequantized.add(outputs[0])
        elif node.input[0] in self._dequantized:
            self._dequantized.update(outputs)
        self._alias[outputs[0]] = node.input[0]
        maker = self._maker.get(self.source(node.input[0]))
        if maker is not None:
            maker.nodes.append(node)

    def _makers(self, node: onnx.NodeProto) -> list[_Group]:
        """Of its inputs, those that could go on with it: behind Q/DQ a kernel has ended."""
        found = [self._maker.get(self.source(name)) for name in node.input if name and not self._is_int8(name)]
        return [group for group in found if group is not None]

    def _group_of_product(self, node: onnx.NodeProto, product: Product) -> _Group:
        if product.kind == "batched-matmul":
            scores = self._maker.get(self.source(node.input[0]))
            if scores is not None and scores.softmax and scores.product is not None and not scores.closed:
                scores.product = attention_product(scores.product, product)
                scores.closed = True
                return scores
        product.quantized = all(self._is_int8(name) for name in node.input[:2])
        return self._new(product)

    def _is_int8(self, name: str) -> bool:
        """Whether an operand comes through DequantizeLinear, views of it among them."""
        if name in self._dequantized:
            return True
        return any(
            maker.op_type in ("DequantizeLinear", "Transpose", "Reshape", "Identity", "Cast")
            and (maker.op_type == "DequantizeLinear" or self._is_int8(maker.input[0]))
            for maker in self.graph.makers(name)
        )

    def _group_of(self, node: onnx.NodeProto) -> _Group:
        makers = self._makers(node)
        latest = max(makers, key=lambda group: group.index, default=None)
        if latest is None or latest.closed:
            return self._open(node, latest)
        elements = math.prod(self.graph.shapes.get(node.output[0], (0,)))
        if latest.product is not None:
            if node.op_type == "Softmax" and latest.product.kind == "batched-matmul":
                latest.softmax = True
                return latest
            fits = node.op_type in POINTWISE and elements == latest.elements
            return latest if fits else self._new(None)
        return latest if node.op_type in POINTWISE or node.op_type in REDUCTIONS else self._new(None)

    def _open(self, node: onnx.NodeProto, latest: _Group | None) -> _Group:
        # Behind a closed attention only the way back to [batch, tokens, features] is free.
        return latest if latest is not None and node.op_type == "Transpose" else self._new(None)

    def _new(self, product: Product | None) -> _Group:
        group = _Group(len(self.groups), product)
        self.groups.append(group)
        return group

    def layers(self) -> Iterable[LayerGeometry]:
        """Make the layers once every node is in its group."""
        readers: dict[str, set[int]] = {}
        for group in self.groups:
            for node in group.nodes:
                if node.op_type not in VIEWS and node.op_type not in ("Shape", "Size"):
                    for name in node.input:
                        readers.setdefault(self.source(name), set()).add(group.index)
        ends = {self.source(name) for name in self.graph.outputs}
        gone = self._into_attention(readers, ends)
        for group in self.groups:
            if group.index not in gone and any(node.op_type not in VIEWS for node in group.nodes):
                yield self._layer(group, readers, ends)

    def _into_attention(self, readers: dict[str, set[int]], ends: set[str]) -> set[int]:
        """Fused attention reads its heads where the projection left them: slicing and scaling for it is no kernel."""
        moved: dict[int, int] = {}
        for group in reversed(self.groups):
            made = {name for node in group.nodes if node.op_type not in VIEWS for name in node.output if name}
            heads = set().union(*(readers.get(name, set()) for name in made)) - {group.index}
            if group.product is not None or made & ends or len(heads) != 1:
                continue
            target = self.groups[heads.pop()]
            if target.product is None or target.product.kind != "attention":
                continue
            if all(node.op_type in PICKS | POINTWISE | VIEWS for node in group.nodes):
                target.nodes = group.nodes + target.nodes
                moved[group.index] = target.index
        for name, indices in readers.items():
            readers[name] = {moved.get(index, index) for index in indices}
        return set(moved)

    def _layer(self, group: _Group, readers: dict[str, set[int]], ends: set[str]) -> LayerGeometry:
        work = [node for node in group.nodes if node.op_type not in VIEWS]
        made = {name for node in work for name in node.output if name}
        read: dict[str, Traffic] = {}
        for node in work:
            limit = self._written(node) if node.op_type in PICKS else None
            for name in map(self.source, node.input):
                if name and name not in made and name not in self.graph.constants:
                    # Several picks of one tensor (Q, K and V of one projection) read their parts of it.
                    before = read.get(name, Traffic()) if limit is not None else Traffic()
                    read[name] = self._traffic(name, limit) + before
        written = [name for name in made if name in ends or readers.get(name, set()) - {group.index}]
        product = group.product
        anchor = product.node if product is not None else work[0]
        operands = set(map(self.source, anchor.input)) if product is not None else set(read)
        has_epilogue = product is not None and product.kind != "attention"
        reads = _sum(
            self._share(traffic, product) if product is not None and name in operands else traffic
            for name, traffic in read.items()
        )
        fields: dict[str, Any] = {} if product is None else product.fields()
        return LayerGeometry(
            name=_name(anchor),
            op_types=tuple(node.op_type for node in group.nodes),
            nodes=tuple(map(_name, group.nodes)),
            torch_name=torch_name_of(anchor, product.weight if product is not None else ""),
            reads=reads,
            residual=_sum(traffic for name, traffic in read.items() if has_epilogue and name not in operands),
            writes=_sum(self._traffic(name, None) for name in written),
            int8_out=bool(written) and all(name in self._quantized for name in written),
            **({"kind": "memory"} | fields),
        )

    def _share(self, traffic: Traffic, product: Product) -> Traffic:
        """A stride larger than the kernel steps over part of the image."""
        share = product.read_share
        return traffic if share >= 1 else Traffic(floats=int(traffic.floats * share), int8=int(traffic.int8 * share))

    def _written(self, node: onnx.NodeProto) -> int:
        return sum(math.prod(self.graph.shapes.get(name, (0,))) for name in node.output if name)

    def _traffic(self, name: str, limit: int | None) -> Traffic:
        elements = math.prod(self.graph.shapes.get(name, (0,)))
        elements = elements if limit is None else min(elements, limit)
        if name in self._quantized:
            return Traffic(int8=elements)
        dtype = self.graph.dtypes.get(name, 0)
        return Traffic(floats=elements) if dtype in _FLOATS else Traffic(other_bytes=elements * _SIZES.get(dtype, 1))


def _sum(traffic: Iterable[Traffic]) -> Traffic:
    return sum(traffic, Traffic())


def _name(node: onnx.NodeProto) -> str:
    return as_text(node.name or (node.output[0] if node.output else node.op_type))


__all__ = ["POINTWISE", "REDUCTIONS", "VIEWS", "Shape", "fused_layers"]
