"""How each ONNX operator ties the positions of its inputs' axes to those of its outputs' axes.

An operator that is not listed holds everything that it touches in place. A rule says what is true of the operator
for every weight value (ONNX operator specifications); where attributes or shapes leave doubt, it raises `NotTied`.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from nm2trt.prune.permutation.channels import size_of
from nm2trt.prune.permutation.context import (
    NotTied,
    Rule,
    RuleContext,
    axes_argument,
    data_of,
    input_of,
    int_of,
    known_rank,
    known_sizes,
    tie_images,
)
from nm2trt.prune.permutation.layout_rules import LAYOUT_RULES


def apply_rule(context: RuleContext, node: ir.Node) -> None:
    """Record what a node ties; what its rule does not mention, or an unknown operator touches, is held in place."""
    ties = context.ties
    where = f"{node.op_type} {node.name!r}"
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    ties.mentioned.clear()
    doubt = f"{where} is not understood" if rule is None else _doubt(rule, context, node, where)
    if doubt:
        ties.mentioned.clear()
    reason = doubt or f"{where} reads it as a parameter"
    mentioned = set(ties.mentioned)
    for value in (*node.inputs, *node.outputs):
        if value is not None and value not in mentioned:
            ties.fix_all(value, reason)


def _doubt(rule: Rule, context: RuleContext, node: ir.Node, where: str) -> str:
    """Apply a rule; why it does not cover this node or an output that something reads, empty where it does."""
    try:
        rule(context, node)
    except NotTied as reason:
        return f"{where}: {reason}" if str(reason) else f"{where} is not understood"
    except (LookupError, ValueError, TypeError):
        return f"{where} is not understood"
    known = all(output in context.ties.mentioned or not _is_used(output) for output in node.outputs)
    return "" if known else f"{where} has outputs that are not understood"


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _elementwise(context: RuleContext, node: ir.Node) -> None:
    for value in node.inputs:
        context.broadcast(value, node.outputs[0])


def _first_input(context: RuleContext, node: ir.Node) -> None:
    for output in node.outputs:
        context.broadcast(data_of(node), output)


def _nothing(context: RuleContext, node: ir.Node) -> None:
    """The output does not depend on any order of the input."""
    context.ties.mentioned.update(value for value in (*node.inputs, *node.outputs) if value is not None)


def _quantize(context: RuleContext, node: ir.Node) -> None:
    x, y = data_of(node), node.outputs[0]
    context.broadcast(x, y)
    axis = int_of(node, "axis", 1)
    for value in node.inputs[1:]:
        if value is None or math.prod(known_sizes(value)) == 1:
            continue
        if known_rank(value) != 1:
            raise NotTied
        context.ties.same(value, 0, x, axis % known_rank(x))


def _pool(context: RuleContext, node: ir.Node) -> None:
    tie_images(context, data_of(node), node.outputs[0])


def _conv(context: RuleContext, node: ir.Node) -> None:
    ties, x, w, y = context.ties, data_of(node), data_of(node, 1), node.outputs[0]
    bias, groups = input_of(node, 2), int_of(node, "group", 1)
    tie_images(context, x, y, tie_channels=False)
    for axis in range(2, known_rank(w)):
        ties.fix(w, axis, f"axis {axis} of {w.name!r} is spatial")
    out, per_group = known_sizes(w)[:2]
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
    ties, x, w, y = context.ties, data_of(node), data_of(node, 1), node.outputs[0]
    bias, groups = input_of(node, 2), int_of(node, "group", 1)
    tie_images(context, x, y, tie_channels=False)
    for axis in range(2, known_rank(w)):
        ties.fix(w, axis, f"axis {axis} of {w.name!r} is spatial")
    ties.same(x, 1, w, 0)
    if groups == 1:
        ties.same(w, 1, y, 1)
    elif known_sizes(w)[:2] == [groups, 1]:
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
    ties, a, b, y = context.ties, data_of(node), data_of(node, 1), node.outputs[0]
    a_k = 0 if int_of(node, "transA", 0) else 1
    b_k = 1 if int_of(node, "transB", 0) else 0
    ties.same(a, a_k, b, b_k)
    ties.same(a, 1 - a_k, y, 0)
    ties.same(b, 1 - b_k, y, 1)
    context.broadcast(input_of(node, 2), y)


def _matmul(context: RuleContext, node: ir.Node) -> None:
    ties, a, b, y = context.ties, data_of(node), data_of(node, 1), node.outputs[0]
    ranks = known_rank(a), known_rank(b), known_rank(y)
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
    context.broadcast(data_of(node), node.outputs[0])
    for value in node.inputs[1:]:
        if value is not None:
            context.ties.same(value, 0, data_of(node), 1)


def _layer_norm(context: RuleContext, node: ir.Node) -> None:
    # Mean and variance do not depend on the order; scale and bias move with their positions.
    context.broadcast(data_of(node), node.outputs[0])
    for value in node.inputs[1:]:
        context.broadcast(value, data_of(node))


def _reduce(context: RuleContext, node: ir.Node) -> None:
    x, y = data_of(node), node.outputs[0]
    rank = known_rank(x)
    axes = axes_argument(context, node)
    if not axes:
        axes = [] if axes is not None and int_of(node, "noop_with_empty_axes", 0) else list(range(rank))
    gone = {axis % rank for axis in axes}
    keep = int_of(node, "keepdims", 1)
    context.ties.mentioned.update((x, y))
    at = 0
    for axis in range(rank):
        if axis not in gone:
            context.ties.same(x, axis, y, at)
        at += 1 if axis not in gone or keep else 0


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
    **LAYOUT_RULES,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
