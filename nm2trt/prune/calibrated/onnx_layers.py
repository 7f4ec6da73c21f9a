"""What every weight to prune is multiplied with: the tensor, and how it becomes rows of inputs.

Legend: G groups of a convolution or products of a batch, R rows, C columns (weights of one output), O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from nm2trt.layers.onnx_reader import weight_use
from nm2trt.onnx_tools.constants import resolve
from nm2trt.onnx_tools.proto_graph import Node, graph_nodes
from nm2trt.pattern import NMPattern
from nm2trt.prune.calibrated.onnx_graph import RunnableGraph
from nm2trt.prune.calibrated.unfold import iterate_unfolded, weight_to_columns
from nm2trt.prune.magnitude import Layout, moved
from nm2trt.prune.selection import Decision
from nm2trt.prune.writers.stored import StoredWeight

Array = NDArray[Any]
Signature = tuple[Any, ...]

NOT_IN_MAIN_GRAPH = "its inputs are not seen: it lies in the body of a Loop, Scan or If"
TRANSPOSED = "transposed convolutions are not pruned with data"
_IN_A_BODY = -1
_OTHER_LAYOUT = "read by {} in another layout"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInput:
    """One operator that multiplies a weight."""

    node: int
    """Its place in the graph's order."""
    data: str
    """The tensor that the weight is multiplied with."""
    op: str
    weight_shape: tuple[int, ...]
    """In the operator's shape."""
    transposed: bool = False
    """MatMul, Gemm: the data have the columns in their last axis but one."""
    weight_transposed: bool = False
    """MatMul, Gemm: the weight has the columns in its last axis but one."""
    groups: int = 1
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    layout: Layout = ()
    """From the stored weight to the operator's shape."""

    @property
    def signature(self) -> Signature:
        """Equal for layers with the same rows of inputs: they share one Gram matrix."""
        if self.op == "Conv":
            how: Signature = (self.groups, self.weight_shape[2:], self.strides, self.pads, self.dilations)
            return self.data, self.op, self.auto_pad, *how
        return self.data, self.op, self.transposed, self.weight_shape[:-2]

    def columns(self, stored: Array) -> Array:
        """Bring a stored weight into [G, O, C]."""
        values = moved(stored, self.layout)
        if self.op == "Conv":
            return weight_to_columns(values, self.groups)
        wide = np.swapaxes(values, -1, -2) if self.weight_transposed else values
        return wide.reshape(-1, *wide.shape[-2:])

    def rows(self, array: Array) -> Iterator[Array]:
        """Bring the data of one batch into [G, R, C], piece by piece."""
        if self.op == "Conv":
            yield from iterate_unfolded(
                array,
                self.weight_shape[2:],
                strides=self.strides or None,
                pads=self._resolved_pads(array.shape[2:]),
                dilations=self.dilations or None,
                groups=self.groups,
            )
            return
        wide = array.reshape(1, -1) if array.ndim == 1 else np.swapaxes(array, -1, -2) if self.transposed else array
        batch = self.weight_shape[:-2]
        if math.prod(batch) == 1:
            yield wide.reshape(1, -1, wide.shape[-1])
            return
        whole = np.broadcast_shapes(wide.shape[:-2], batch)
        wide = np.broadcast_to(wide, (*whole, *wide.shape[-2:]))
        aligned = (1,) * (len(whole) - len(batch)) + batch
        own = [axis for axis, size in enumerate(aligned) if size > 1]
        yield np.moveaxis(wide, own, range(len(own))).reshape(math.prod(batch), -1, wide.shape[-1])

    def _resolved_pads(self, sizes: Sequence[int]) -> list[int] | None:
        """ONNX's auto_pad: as many outputs as strides fit the input, the odd zero at the end or the start."""
        if self.auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
            return list(self.pads) if self.pads and self.auto_pad == "NOTSET" else None
        before, after = [], []
        for axis, (size, kernel) in enumerate(zip(sizes, self.weight_shape[2:], strict=True)):
            stride = self.strides[axis] if self.strides else 1
            reach = (kernel - 1) * (self.dilations[axis] if self.dilations else 1) + 1
            total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
            less, more = total // 2, total - total // 2
            before.append(less if self.auto_pad == "SAME_UPPER" else more)
            after.append(more if self.auto_pad == "SAME_UPPER" else less)
        return before + after


@dataclass(slots=True, kw_only=True)
class PrunableTensor:
    """One stored weight with everything that multiplies it."""

    weight: StoredWeight
    pattern: NMPattern
    names: tuple[str, ...]
    """Initializers that hold it."""
    inputs: list[LayerInput] = field(default_factory=list)

    @property
    def first_node(self) -> int:
        """Where the graph needs it first."""
        return min(one.node for one in self.inputs)


def find_prunable(graph: RunnableGraph, decisions: Sequence[Decision]) -> tuple[list[PrunableTensor], list[Decision]]:
    """Find the inputs of every weight that was chosen.

    Returns:
        The tensors in the graph's order, and the decisions; a weight whose inputs are not seen stays dense there.

    Raises:
        InputError: An operator's attributes make no sense.
    """
    inputs = _inputs_by_weight(graph)
    by_key: dict[object, list[Decision]] = {}
    for decision in decisions:
        by_key.setdefault(decision.weight.key, []).append(decision)
    tensors, refused = [], {}
    for key, shared in by_key.items():
        if shared[0].pattern is None:
            continue
        names = tuple(dict.fromkeys(decision.weight.layer.name for decision in shared))
        found = [one for name in names for one in inputs.get(name, [])]
        reason = _why_not(shared, found)
        if reason:
            refused[key] = reason
        else:
            tensors.append(
                PrunableTensor(weight=shared[0].weight, pattern=shared[0].pattern, names=names, inputs=found)
            )
    settled = [
        replace(decision, pattern=None, reason=refused[decision.weight.key])
        if decision.weight.key in refused
        else decision
        for decision in decisions
    ]
    return sorted(tensors, key=lambda tensor: tensor.first_node), settled


def _why_not(shared: Sequence[Decision], found: Sequence[LayerInput]) -> str:
    if any(decision.weight.layer.op == "conv-transpose" for decision in shared):
        return TRANSPOSED
    if not found or any(one.node < 0 for one in found):
        return NOT_IN_MAIN_GRAPH
    stored = shared[0].weight.read()
    positions = np.arange(stored.size, dtype=np.intp).reshape(stored.shape)
    first = found[0].columns(positions)
    for other in found[1:]:
        if not np.array_equal(other.columns(positions), first):
            return _OTHER_LAYOUT.format(f"{other.op} of {other.data!r}")
    return ""


def _inputs_by_weight(graph: RunnableGraph) -> dict[str, list[LayerInput]]:
    found: dict[str, list[LayerInput]] = {}
    for node in graph_nodes(graph.model(), graph.path):
        use = weight_use(node, graph.path)
        if use is None or use.op == "conv-transpose":
            continue
        side = _weight_side(node, graph)
        place = graph.producers.get(node.proto.output[0], _IN_A_BODY)
        data = node.proto.input[0 if node.op_type == "Conv" else 1 - side]
        made = _layer_input(node.proto, place, data, side, use.constant.shape)
        found.setdefault(use.constant.name, []).append(replace(made, layout=use.constant.layout))
    return found


def _weight_side(node: Node, graph: RunnableGraph) -> int:
    """Which input of a product is the weight, as the reader of layers decides it."""
    return 1 if node.op_type == "Conv" or resolve(node.inputs[1], graph.path) is not None else 0


def _layer_input(proto: onnx.NodeProto, place: int, data: str, side: int, shape: tuple[int, ...]) -> LayerInput:
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in proto.attribute}
    if proto.op_type == "Conv":
        return LayerInput(
            node=place,
            data=data,
            op="Conv",
            weight_shape=shape,
            groups=int(values.get("group", 1)),
            strides=tuple(values.get("strides", ())),
            pads=tuple(values.get("pads", ())),
            dilations=tuple(values.get("dilations", ())),
            auto_pad=values.get("auto_pad", b"NOTSET").decode(),
        )
    turned = {0: bool(values.get("transA", 0)), 1: bool(values.get("transB", 0))}
    # As a left operand rows are as they are stored, as a right one they are columns.
    return LayerInput(
        node=place,
        data=data,
        op=proto.op_type,
        weight_shape=shape,
        transposed=turned[1 - side] != (side == 0),
        weight_transposed=turned[side] != (side == 1),
    )
