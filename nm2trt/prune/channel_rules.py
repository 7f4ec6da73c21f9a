"""How each ONNX operator ties the positions of its inputs' axes to those of its outputs' axes.

An operator that is not listed holds everything that it touches in place. A rule says what is true of the operator
for every weight value (ONNX operator specifications); where attributes or shapes leave doubt, it raises `NotTied`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from nm2trt.layers.onnx_constants import resolve
from nm2trt.prune.channels import ChannelTies, rank_of, size_of
from nm2trt.prune.reshape_ties import Reshapes

Rule = Callable[["RuleContext", ir.Node], None]


class NotTied(Exception):  # noqa: N818 -- a signal between rules and their caller
    """A rule does not cover this use of its operator."""


class RuleContext:
    """What rules work on."""

    def __init__(self, ties: ChannelTies, path: Path) -> None:
        self.ties = ties
        self.path = path
        self.reshapes = Reshapes(ties)

    def constant(self, node: ir.Node, index: int) -> list[int] | None:
        """Values of a constant integer input; None where the input is absent.

        Raises:
            NotTied: The input is computed.
        """
        value = _input(node, index)
        if value is None:
            return None
        found = resolve(value, self.path)
        if found is None:
            raise NotTied
        return [int(item) for item in np.asarray(found.value()).reshape(-1)]

    def broadcast(self, x: ir.Value | None, y: ir.Value) -> None:
        """Tie the axes of x to those of y that numpy's broadcasting puts them on."""
        if x is None:
            return
        x_rank, y_rank = _rank(x), _rank(y)
        self.ties.mentioned.add(x)
        for axis in range(x_rank):
            if size_of(x, axis) != 1:
                if y_rank < x_rank:
                    raise NotTied
                self.ties.same(x, axis, y, axis + y_rank - x_rank)


def apply_rule(context: RuleContext, node: ir.Node) -> None:
    """Record what a node ties; what its rule does not mention, or an unknown operator touches, is held in place."""
    ties = context.ties
    where = f"{node.op_type} {node.name!r}"
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    ties.mentioned.clear()
    understood = rule is not None and _obeyed(rule, context, node)
    if not understood:
        ties.mentioned.clear()
    reason = f"{where} reads it as a parameter" if understood else f"{where} is not understood"
    mentioned = set(ties.mentioned)
    for value in (*node.inputs, *node.outputs):
        if value is not None and value not in mentioned:
            ties.fix_all(value, reason)


def _obeyed(rule: Rule, context: RuleContext, node: ir.Node) -> bool:
    """Apply a rule; False where it does not cover this node or an output that something reads."""
    try:
        rule(context, node)
    except (NotTied, LookupError, ValueError, TypeError):
        return False
    return all(output in context.ties.mentioned or not _is_used(output) for output in node.outputs)


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _data(node: ir.Node, index: int = 0) -> ir.Value:
    value = _input(node, index)
    if value is None:
        raise NotTied
    return value


def _rank(value: ir.Value) -> int:
    rank = rank_of(value)
    if rank is None:
        raise NotTied
    return rank


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _axes_argument(context: RuleContext, node: ir.Node) -> list[int] | None:
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    return context.constant(node, 1)


def _elementwise(context: RuleContext, node: ir.Node) -> None:
    for value in node.inputs:
        context.broadcast(value, node.outputs[0])


def _first_input(context: RuleContext, node: ir.Node) -> None:
    for output in node.outputs:
        context.broadcast(_data(node), output)


def _nothing(context: RuleContext, node: ir.Node) -> None:
    """The output does not depend on any order of the input."""
    context.ties.mentioned.update(value for value in (*node.inputs, *node.outputs) if value is not None)


def _quantize(context: RuleContext, node: ir.Node) -> None:
    x, y = _data(node), node.outputs[0]
    context.broadcast(x, y)
    axis = _int(node, "axis", 1)
    for value in node.inputs[1:]:
        if value is None or math.prod(_sizes(value)) == 1:
            continue
        if _rank(value) != 1:
            raise NotTied
        context.ties.same(value, 0, x, axis % _rank(x))


def _sizes(value: ir.Value) -> list[int]:
    sizes = [size_of(value, axis) for axis in range(_rank(value))]
    if any(size is None for size in sizes):
        raise NotTied
    return [size for size in sizes if size is not None]


def _channels(context: RuleContext, x: ir.Value, y: ir.Value, *, tie_channels: bool = True) -> None:
    """Batch tied, channels tied if asked for, spatial axes held: what convolutions and pools have in common."""
    ties = context.ties
    ties.same(x, 0, y, 0)
    if tie_channels:
        ties.same(x, 1, y, 1)
    for value in (x, y):
        for axis in range(2, _rank(value)):
            ties.fix(value, axis, f"axis {axis} of {value.name!r} is spatial")


def _pool(context: RuleContext, node: ir.Node) -> None:
    _channels(context, _data(node), node.outputs[0])


def _conv(context: RuleContext, node: ir.Node) -> None:
    ties, x, w, y = context.ties, _data(node), _data(node, 1), node.outputs[0]
    bias, groups = _input(node, 2), _int(node, "group", 1)
    _channels(context, x, y, tie_channels=False)
    for axis in range(2, _rank(w)):
        ties.fix(w, axis, f"axis {axis} of {w.name!r} is spatial")
    out, per_group = _sizes(w)[:2]
    if groups > 1 and per_group == 1:
        _blocks(context, x, 1, w, 0, out // groups)
    elif groups > 1:
        reason = f"{node.op_type} {node.name!r} has {groups} groups, whose outputs keep their places"
        _repeats(context, x, 1, w, 1, groups)
        ties.fix(w, 0, reason)
        ties.fix(y, 1, reason)
    else:
        ties.same(x, 1, w, 1)
    ties.same(w, 0, y, 1)
    if bias is not None:
        ties.same(bias, 0, y, 1)


def _conv_transpose(context: RuleContext, node: ir.Node) -> None:
    ties, x, w, y = context.ties, _data(node), _data(node, 1), node.outputs[0]
    bias, groups = _input(node, 2), _int(node, "group", 1)
    _channels(context, x, y, tie_channels=False)
    for axis in range(2, _rank(w)):
        ties.fix(w, axis, f"axis {axis} of {w.name!r} is spatial")
    ties.same(x, 1, w, 0)
    if groups == 1:
        ties.same(w, 1, y, 1)
    elif _sizes(w)[:2] == [groups, 1]:
        ties.same(x, 1, y, 1)
    else:
        raise NotTied
    if bias is not None:
        ties.same(bias, 0, y, 1)


def _blocks(context: RuleContext, x: ir.Value, x_axis: int, y: ir.Value, y_axis: int, block: int) -> None:
    """Position c of x is the block c * block ... of y."""
    left, right = context.ties.ids(x, x_axis), context.ties.ids(y, y_axis)
    if left is None or right is None or left.size * block != right.size:
        raise NotTied
    role = np.tile(np.arange(block, dtype=np.int64), left.size)
    context.ties.tie(np.repeat(left, block), right, role)


def _repeats(context: RuleContext, x: ir.Value, x_axis: int, w: ir.Value, w_axis: int, groups: int) -> None:
    """Position g * size + k of x is position k of w, for every g."""
    left, right = context.ties.ids(x, x_axis), context.ties.ids(w, w_axis)
    if left is None or right is None or right.size * groups != left.size:
        raise NotTied
    role = np.repeat(np.arange(groups, dtype=np.int64), right.size)
    context.ties.tie(left, np.tile(right, groups), role)


def _gemm(context: RuleContext, node: ir.Node) -> None:
    ties, a, b, y = context.ties, _data(node), _data(node, 1), node.outputs[0]
    a_k = 0 if _int(node, "transA", 0) else 1
    b_k = 1 if _int(node, "transB", 0) else 0
    ties.same(a, a_k, b, b_k)
    ties.same(a, 1 - a_k, y, 0)
    ties.same(b, 1 - b_k, y, 1)
    context.broadcast(_input(node, 2), y)


def _matmul(context: RuleContext, node: ir.Node) -> None:
    ties, a, b, y = context.ties, _data(node), _data(node, 1), node.outputs[0]
    ranks = _rank(a), _rank(b), _rank(y)
    if min(ranks) < 2:
        raise NotTied
    ties.same(a, ranks[0] - 1, b, ranks[1] - 2)
    ties.same(a, ranks[0] - 2, y, ranks[2] - 2)
    ties.same(b, ranks[1] - 1, y, ranks[2] - 1)
    for value, rank in ((a, ranks[0]), (b, ranks[1])):
        for axis in range(rank - 2):
            if size_of(value, axis) != 1:
                ties.same(value, axis, y, axis + ranks[2] - rank)


def _per_channel(context: RuleContext, node: ir.Node) -> None:
    context.broadcast(_data(node), node.outputs[0])
    for value in node.inputs[1:]:
        if value is not None:
            context.ties.same(value, 0, _data(node), 1)


def _layer_norm(context: RuleContext, node: ir.Node) -> None:
    # Mean and variance do not depend on the order; scale and bias move with their positions.
    context.broadcast(_data(node), node.outputs[0])
    for value in node.inputs[1:]:
        context.broadcast(value, _data(node))


def _reduce(context: RuleContext, node: ir.Node) -> None:
    x, y = _data(node), node.outputs[0]
    rank = _rank(x)
    axes = _axes_argument(context, node)
    if not axes:
        axes = [] if axes is not None and _int(node, "noop_with_empty_axes", 0) else list(range(rank))
    gone = {axis % rank for axis in axes}
    keep = _int(node, "keepdims", 1)
    context.ties.mentioned.update((x, y))
    at = 0
    for axis in range(rank):
        if axis not in gone:
            context.ties.same(x, axis, y, at)
        at += 1 if axis not in gone or keep else 0


def _transpose(context: RuleContext, node: ir.Node) -> None:
    x, y = _data(node), node.outputs[0]
    rank = _rank(x)
    perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(rank - 1, -1, -1)
    context.ties.mentioned.update((x, y))
    for axis, origin in enumerate(perm):
        context.ties.same(x, origin, y, axis)


def _unsqueeze(context: RuleContext, node: ir.Node) -> None:
    x, y = _data(node), node.outputs[0]
    _through(context, x, y, _axes_argument(context, node) or [], squeezed=False)


def _squeeze(context: RuleContext, node: ir.Node) -> None:
    x, y = _data(node), node.outputs[0]
    axes = _axes_argument(context, node)
    if axes is None:
        axes = [axis for axis, size in enumerate(_sizes(x)) if size == 1]
    _through(context, y, x, axes, squeezed=True)


def _through(context: RuleContext, small: ir.Value, large: ir.Value, axes: Sequence[int], *, squeezed: bool) -> None:
    """Tie the axes of `small` to those of `large` that are not in `axes`."""
    rank = _rank(large) if squeezed else _rank(small) + len(axes)
    extra = {axis % rank for axis in axes}
    context.ties.mentioned.update((small, large))
    for axis, target in enumerate(target for target in range(rank) if target not in extra):
        context.ties.same(small, axis, large, target)


def _reshape(context: RuleContext, node: ir.Node) -> None:
    x, y = _data(node), node.outputs[0]
    context.ties.mentioned.update((x, y))
    context.reshapes.add(x, y, f"{node.op_type} {node.name!r}", _copied_axes(context, node))


def _copied_axes(context: RuleContext, node: ir.Node) -> set[int]:
    """Axes that Reshape copies from its input: zeros in its shape."""
    if node.op_type != "Reshape" or _int(node, "allowzero", 0):
        return set()
    try:
        shape = context.constant(node, 1) or []
    except NotTied:
        return set()
    return {axis for axis, size in enumerate(shape) if size == 0}


def _concat(context: RuleContext, node: ir.Node) -> None:
    y = node.outputs[0]
    axis = _int(node, "axis", 0) % _rank(y)
    _pieces(context, y, [value for value in node.inputs if value is not None], axis)


def _split(context: RuleContext, node: ir.Node) -> None:
    x = _data(node)
    _pieces(context, x, list(node.outputs), _int(node, "axis", 0) % _rank(x))


def _pieces(context: RuleContext, whole: ir.Value, parts: Sequence[ir.Value], axis: int) -> None:
    ties = context.ties
    sizes = [size_of(part, axis) for part in parts]
    known = [size for size in sizes if size is not None]
    if len(known) != len(parts) or sum(known) != size_of(whole, axis):
        raise NotTied
    positions = ties.ids(whole, axis)
    start = 0
    for part, size in zip(parts, known, strict=True):
        ids = ties.ids(part, axis)
        if positions is not None and size:
            if ids is not None:
                ties.tie(ids, positions[start : start + size])
            elif len(parts) > 1:
                # A single position has no id of its own; its place in the whole is then not free.
                ties.fix(whole, axis, f"a piece of {whole.name!r} has size 1")
        start += size
        for other in range(_rank(whole)):
            if other != axis:
                ties.same(part, other, whole, other)


def _slice(context: RuleContext, node: ir.Node) -> None:
    x, y = _data(node), node.outputs[0]
    starts, ends = context.constant(node, 1), context.constant(node, 2)
    if starts is None or ends is None:
        raise NotTied
    axes = context.constant(node, 3) or list(range(len(starts)))
    steps = context.constant(node, 4) or [1] * len(starts)
    rank = _rank(x)
    cuts = {axis % rank: slice(a, b, c) for axis, a, b, c in zip(axes, starts, ends, steps, strict=True)}
    for axis in range(rank):
        if axis not in cuts:
            context.ties.same(x, axis, y, axis)
            continue
        left, right = context.ties.ids(x, axis), context.ties.ids(y, axis)
        cut = cuts[axis]
        if left is not None and right is not None and cut.step > 0 and left[cut].size == right.size:
            context.ties.tie(left[cut], right)
            continue
        context.ties.fix(x, axis, f"Slice {node.name!r} takes places along it")
        context.ties.fix(y, axis, f"Slice {node.name!r} makes it")


def _gather(context: RuleContext, node: ir.Node) -> None:
    x, indices, y = _data(node), _data(node, 1), node.outputs[0]
    rank, count = _rank(x), _rank(indices)
    axis = _int(node, "axis", 0) % rank
    context.ties.mentioned.update((x, indices, y))
    for other in range(rank):
        if other != axis:
            context.ties.same(x, other, y, other if other < axis else other + count - 1)
    for other in range(count):
        context.ties.same(indices, other, y, axis + other)
    context.ties.fix(x, axis, f"Gather {node.name!r} looks places up along it")


def _pad(context: RuleContext, node: ir.Node) -> None:
    x, y = _data(node), node.outputs[0]
    rank = _rank(x)
    pads = list(node.attributes["pads"].as_ints()) if "pads" in node.attributes else context.constant(node, 1)
    axes = context.constant(node, 3) or list(range(rank))
    if pads is None or len(pads) != 2 * len(axes):
        raise NotTied
    padded = {axis % rank for index, axis in enumerate(axes) if pads[index] or pads[index + len(axes)]}
    for axis in range(rank):
        if axis in padded:
            context.ties.fix(x, axis, f"Pad {node.name!r} pads it")
            context.ties.fix(y, axis, f"Pad {node.name!r} pads it")
        else:
            context.ties.same(x, axis, y, axis)


def _resize(context: RuleContext, node: ir.Node) -> None:
    x, y = _data(node), node.outputs[0]
    if _rank(x) < 3 or "axes" in node.attributes:
        raise NotTied
    _channels(context, x, y)


_ELEMENTWISE = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Ceil", "Clip", "Cos", "Cosh", "Elu", "Erf"),
    *("Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish"),
    *("Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus"),
    *("Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Cast"),
    *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod"),
    *("Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor"),
)
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(("CastLike", "Dropout", "Expand", "Softmax", "LogSoftmax", "LpNormalization"), _first_input),
    **dict.fromkeys(("Shape", "Size", "ConstantOfShape", "Constant"), _nothing),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "LpPool", "MaxPool"), _pool),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _per_channel),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_norm),
    **{f"Reduce{kind}": _reduce for kind in _REDUCTIONS},
    **dict.fromkeys(("Reshape", "Flatten"), _reshape),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
}
