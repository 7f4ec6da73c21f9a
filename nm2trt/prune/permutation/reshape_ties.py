"""How Reshape and Flatten tie positions: axes that stay, merge or split, in row-major order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from nm2trt.prune.permutation.channels import ChannelTies, dimension_of, rank_of


@dataclass(frozen=True, slots=True)
class _Merge:
    """Several axes of `parts` are one axis of `whole`."""

    parts: ir.Value
    axes: tuple[int, ...]
    whole: ir.Value
    axis: int
    sizes: tuple[int, ...]
    where: str


class Reshapes:
    """Ties what is plain at once; merged axes wait until it is known which of them is free to move."""

    def __init__(self, ties: ChannelTies) -> None:
        self._ties = ties
        self._merges: list[_Merge] = []

    def add(self, x: ir.Value, y: ir.Value, where: str, copied: set[int]) -> None:
        """Record a node.

        Args:
            x: Its input.
            y: Its output.
            where: The node, for reasons.
            copied: Axes of `y` that are those of `x` by the node's own word.
        """
        x_rank, y_rank = rank_of(x), rank_of(y)
        if x_rank is None or y_rank is None:
            self._hold(x, range(x_rank or 0), where)
            self._hold(y, range(y_rank or 0), where)
            return
        start = 0
        while start < min(x_rank, y_rank) and self._equal(x, y, start, start, copied):
            if isinstance(dimension_of(x, start), int) or isinstance(dimension_of(y, start), int):
                self._ties.same(x, start, y, start)
            start += 1
        x_at, y_at = x_rank, y_rank
        while x_at > start and y_at > start:
            # Row-major order: what lies further left does not change positions further right.
            group = self._group(x, x_at, y, y_at, start)
            if group is None:
                break
            self._tie_group(x, range(x_at - group[0], x_at), y, range(y_at - group[1], y_at), where)
            x_at, y_at = x_at - group[0], y_at - group[1]
        self._hold(x, range(start, x_at), where)
        self._hold(y, range(start, y_at), where)

    def settle(self) -> None:
        """Tie merged axes: the innermost that is free to move, else the outermost, stands for the whole.

        Attention merges heads with the features of each, which are free; a Flatten merges channels with pixels,
        which are not.
        """
        chosen = []
        for merge in self._merges:
            free = [axis for axis in merge.axes if not self._ties.is_fixed(merge.parts, axis)]
            chosen.append(free[-1] if free else merge.axes[0])
        for merge, axis in zip(self._merges, chosen, strict=True):
            self._tie_merge(merge, merge.axes.index(axis))

    def _tie_merge(self, merge: _Merge, index: int) -> None:
        outer, size = math.prod(merge.sizes[:index]), merge.sizes[index]
        inner = math.prod(merge.sizes[index + 1 :])
        part = self._ties.ids(merge.parts, merge.axes[index])
        whole = self._ties.ids(merge.whole, merge.axis)
        if part is None or whole is None:
            self._hold(merge.whole, (merge.axis,), merge.where)
        else:
            shape = (outer, size, inner)
            wide = np.broadcast_to(part[None, :, None], shape).reshape(-1)
            role = np.arange(outer * inner, dtype=np.int64).reshape(outer, 1, inner)
            self._ties.tie(wide, whole, np.broadcast_to(role, shape).reshape(-1))
        self._hold(merge.parts, [axis for axis in merge.axes if axis != merge.axes[index]], merge.where)

    def _tie_group(self, x: ir.Value, x_axes: range, y: ir.Value, y_axes: range, where: str) -> None:
        x_wide = [axis for axis in x_axes if dimension_of(x, axis) != 1]
        y_wide = [axis for axis in y_axes if dimension_of(y, axis) != 1]
        if len(x_wide) == 1 and len(y_wide) == 1:
            self._ties.same(x, x_wide[0], y, y_wide[0])
        elif len(y_wide) == 1 and x_wide:
            sizes = tuple(dimension_of(x, axis) for axis in x_wide)
            self._merges.append(_Merge(x, tuple(x_wide), y, y_wide[0], sizes, where))
        elif len(x_wide) == 1 and y_wide:
            sizes = tuple(dimension_of(y, axis) for axis in y_wide)
            self._merges.append(_Merge(y, tuple(y_wide), x, x_wide[0], sizes, where))
        else:
            self._hold(x, x_wide, where)
            self._hold(y, y_wide, where)

    def _group(self, x: ir.Value, x_at: int, y: ir.Value, y_at: int, start: int) -> tuple[int, int] | None:
        """Fewest trailing axes of both with the same known product."""
        x_count = y_count = 0
        x_product = y_product = 1
        while x_count == 0 or y_count == 0 or x_product != y_product:
            grow_x = x_count == 0 or (y_count > 0 and x_product < y_product)
            value, at, count = (x, x_at, x_count) if grow_x else (y, y_at, y_count)
            if at - count <= start:
                return None
            size = dimension_of(value, at - count - 1)
            if not isinstance(size, int) or size == 0:
                return None
            if grow_x:
                x_count, x_product = x_count + 1, x_product * size
            else:
                y_count, y_product = y_count + 1, y_product * size
        return x_count, y_count

    @staticmethod
    def _equal(x: ir.Value, y: ir.Value, x_axis: int, y_axis: int, copied: set[int]) -> bool:
        left, right = dimension_of(x, x_axis), dimension_of(y, y_axis)
        return y_axis in copied or (left is not None and left == right)

    def _hold(self, value: ir.Value, axes: range | list[int] | tuple[int, ...], where: str) -> None:
        for axis in axes:
            self._ties.fix(value, axis, f"{where} mixes it with other axes")
