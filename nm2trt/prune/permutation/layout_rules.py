"""Rules for ONNX operators that move, join or cut axes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from nm2trt.prune.permutation.channels import size_of
from nm2trt.prune.permutation.context import (
    NotTied,
    Rule,
    RuleContext,
    axes_argument,
    data_of,
    int_of,
    known_rank,
    known_sizes,
    tie_images,
)


def _transpose(context: RuleContext, node: ir.Node) -> None:
    x, y = data_of(node), node.outputs[0]
    rank = known_rank(x)
    perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(rank - 1, -1, -1)
    context.ties.mentioned.update((x, y))
    for axis, origin in enumerate(perm):
        context.ties.same(x, origin, y, axis)


def _unsqueeze(context: RuleContext, node: ir.Node) -> None:
    x, y = data_of(node), node.outputs[0]
    _through(context, x, y, axes_argument(context, node) or [], squeezed=False)


def _squeeze(context: RuleContext, node: ir.Node) -> None:
    x, y = data_of(node), node.outputs[0]
    axes = axes_argument(context, node)
    if axes is None:
        axes = [axis for axis, size in enumerate(known_sizes(x)) if size == 1]
    _through(context, y, x, axes, squeezed=True)


def _through(context: RuleContext, small: ir.Value, large: ir.Value, axes: Sequence[int], *, squeezed: bool) -> None:
    """Tie the axes of `small` to those of `large` that are not in `axes`."""
    rank = known_rank(large) if squeezed else known_rank(small) + len(axes)
    extra = {axis % rank for axis in axes}
    context.ties.mentioned.update((small, large))
    for axis, target in enumerate(target for target in range(rank) if target not in extra):
        context.ties.same(small, axis, large, target)


def _reshape(context: RuleContext, node: ir.Node) -> None:
    x, y = data_of(node), node.outputs[0]
    context.ties.mentioned.update((x, y))
    context.reshapes.add(x, y, f"{node.op_type} {node.name!r}", _copied_axes(context, node))


def _copied_axes(context: RuleContext, node: ir.Node) -> set[int]:
    """Axes that Reshape copies from its input: zeros in its shape."""
    if node.op_type != "Reshape" or int_of(node, "allowzero", 0):
        return set()
    try:
        shape = context.constant(node, 1) or []
    except NotTied:
        return set()
    return {axis for axis, size in enumerate(shape) if size == 0}


def _concat(context: RuleContext, node: ir.Node) -> None:
    y = node.outputs[0]
    axis = int_of(node, "axis", 0) % known_rank(y)
    _pieces(context, y, [value for value in node.inputs if value is not None], axis)


def _split(context: RuleContext, node: ir.Node) -> None:
    x = data_of(node)
    _pieces(context, x, list(node.outputs), int_of(node, "axis", 0) % known_rank(x))


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
        for other in range(known_rank(whole)):
            if other != axis:
                ties.same(part, other, whole, other)


def _slice(context: RuleContext, node: ir.Node) -> None:
    x, y = data_of(node), node.outputs[0]
    starts, ends = context.constant(node, 1), context.constant(node, 2)
    if starts is None or ends is None:
        raise NotTied
    axes = context.constant(node, 3) or list(range(len(starts)))
    steps = context.constant(node, 4) or [1] * len(starts)
    rank = known_rank(x)
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
    x, indices, y = data_of(node), data_of(node, 1), node.outputs[0]
    rank, count = known_rank(x), known_rank(indices)
    axis = int_of(node, "axis", 0) % rank
    context.ties.mentioned.update((x, indices, y))
    for other in range(rank):
        if other != axis:
            context.ties.same(x, other, y, other if other < axis else other + count - 1)
    for other in range(count):
        context.ties.same(indices, other, y, axis + other)
    context.ties.fix(x, axis, f"Gather {node.name!r} looks places up along it")


def _pad(context: RuleContext, node: ir.Node) -> None:
    x, y = data_of(node), node.outputs[0]
    rank = known_rank(x)
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
    x, y = data_of(node), node.outputs[0]
    if known_rank(x) < 3 or "axes" in node.attributes:
        raise NotTied
    tie_images(context, x, y)


LAYOUT_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Reshape", "Flatten"), _reshape),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
}
