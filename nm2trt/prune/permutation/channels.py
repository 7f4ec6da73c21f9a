"""Which channels of a graph may change places without changing what the network computes.

Every axis of every value is a row of positions. Operators tie positions together: what a Conv makes in channel 3 is
what the BatchNorm after it scales with its third factor. Positions that are tied, directly or through others, are one
*channel*. Two channels may change places, everywhere at once, when they are tied alike; an axis whose order carries
meaning (an input, a spatial axis, the reader of an operator that is not understood) holds its channels in place.

This covers residual additions, Concat, Split, Flatten before a Gemm, attention heads, shared weights and constants
behind Transpose or Q/DQ without a special case, and is checked again on every permutation that is found (`keeps`).
The idea of permuting input channels for N:M sparsity is Pool & Yu, "Channel Permutations for N:M Sparsity"
(NeurIPS 2021); they group layers by walking a torch.fx graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Tie:
    left: Ids
    right: Ids
    role: Ids | None
    """Positions tied in different roles must not be mixed up (which element of a channel's block it is)."""


@dataclass(frozen=True, slots=True)
class ChannelClass:
    """Channels that are tied alike, so that they may change places among themselves."""

    positions: Ids
    """[channels, positions of one channel]: ids, every column within one axis."""


class ChannelTies:
    """Collects ties between the positions of axes, and tells which channels may move."""

    def __init__(self) -> None:
        self._start: dict[tuple[ir.Value, int], int] = {}
        self._axes: list[tuple[ir.Value, int]] = []
        self._sizes: list[int] = []
        self._ties: list[_Tie] = []
        self._fixed: dict[tuple[ir.Value, int], str] = {}
        self._total = 0
        self._labels: NDArray[np.int32] | None = None
        self._preview: tuple[NDArray[np.int32], NDArray[np.bool_]] | None = None
        self.mentioned: set[ir.Value] = set()

    # Recording

    def ids(self, value: ir.Value, axis: int) -> Ids | None:
        """Ids of an axis' positions; None where its size is unknown or 1."""
        size = size_of(value, axis)
        self.mentioned.add(value)
        if size is None or size <= 1:
            return None
        key = value, axis
        if key not in self._start:
            self._start[key] = self._total
            self._axes.append(key)
            self._sizes.append(size)
            self._total += size
        return np.arange(self._start[key], self._start[key] + size, dtype=np.int64)

    def tie(self, left: Ids, right: Ids, role: Ids | None = None) -> None:
        """Tie positions one by one."""
        self._preview = None
        self._ties.append(_Tie(left, right, role))

    def same(self, x: ir.Value, x_axis: int, y: ir.Value, y_axis: int) -> None:
        """Position i of one axis is position i of the other; an unknown size holds the known side in place."""
        left, right = self.ids(x, x_axis), self.ids(y, y_axis)
        if left is not None and right is not None and left.size == right.size:
            self.tie(left, right)
            return
        for value, axis, ids in ((x, x_axis, left), (y, y_axis, right)):
            if ids is not None:
                self.fix(value, axis, f"the size of {_name(y if value is x else x)} is unknown or differs")

    def fix(self, value: ir.Value, axis: int, reason: str) -> None:
        """The order along this axis carries meaning."""
        if self.ids(value, axis) is not None:
            self._fixed.setdefault((value, axis), reason)

    def fix_all(self, value: ir.Value, reason: str) -> None:
        """Fix every axis of a value."""
        self.mentioned.add(value)
        for axis in range(rank_of(value) or 0):
            self.fix(value, axis, reason)

    def is_fixed(self, value: ir.Value, axis: int) -> bool:
        """Whether all channels of an axis are held in place by what is recorded so far."""
        ids = self.ids(value, axis)
        if self._preview is None:
            self._preview = self._held_channels(self._components())
        labels, held = self._preview
        # An axis that came up after the preview is tied to nothing yet.
        return ids is None or (ids[-1] < labels.size and bool(held[labels[ids]].all()))

    # Reading

    def _components(self) -> NDArray[np.int32]:
        left = np.concatenate([tie.left for tie in self._ties]) if self._ties else np.zeros(0, np.int64)
        right = np.concatenate([tie.right for tie in self._ties]) if self._ties else np.zeros(0, np.int64)
        matrix = coo_matrix((np.ones(left.size, np.int8), (left, right)), shape=(self._total, self._total))
        labels: NDArray[np.int32] = connected_components(matrix, directed=False)[1]
        return labels

    def _fixed_ids(self) -> Ids:
        parts = [self.ids(value, axis) for value, axis in self._fixed]
        return np.concatenate([part for part in parts if part is not None] or [np.zeros(0, np.int64)])

    def _held_channels(self, labels: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        held = np.zeros(int(labels.max(initial=-1)) + 1, np.bool_)
        held[labels[self._fixed_ids()]] = True
        return labels, held

    def settle(self) -> None:
        """Compute the channels; no tie may be added afterwards."""
        self._labels, self._held = self._held_channels(self._components())
        order = np.argsort(self._labels, kind="stable").astype(np.int64)
        self._by_channel = order
        self._channel_starts = np.searchsorted(self._labels[order], np.arange(self._labels.max(initial=-1) + 2))
        self._axis_of = np.repeat(np.arange(len(self._sizes)), self._sizes)

    def classes_of(self, value: ir.Value, axis: int) -> tuple[list[ChannelClass], str]:
        """Sort the channels of an axis by how they are tied.

        Returns:
            The classes with more than one channel, each in the axis' order; and, where some channels cannot move,
            the reason for the first of them.
        """
        assert self._labels is not None
        ids = self.ids(value, axis)
        if ids is None:
            return [], "its size is unknown"
        alike: dict[bytes, list[Ids]] = {}
        reason = ""
        channels, first = np.unique(self._labels[ids], return_index=True)
        for channel in channels[np.argsort(first)]:
            members = self._by_channel[self._channel_starts[channel] : self._channel_starts[channel + 1]]
            if self._held[channel]:
                reason = reason or self._reason(int(channel))
                continue
            alike.setdefault(self._axis_of[members].tobytes(), []).append(members)
        classes = [ChannelClass(np.stack(members)) for members in alike.values() if len(members) > 1]
        if not classes and not reason:
            reason = "no two of its channels are tied alike"
        return classes, reason

    def _reason(self, channel: int) -> str:
        assert self._labels is not None
        for (value, axis), reason in self._fixed.items():
            ids = self.ids(value, axis)
            if ids is not None and (self._labels[ids] == channel).any():
                return reason
        return "held in place"

    def axes_of(self, found: ChannelClass) -> list[tuple[ir.Value, int, Ids]]:
        """Axes that a class runs through: value, axis, and its positions there as [channels, positions]."""
        columns = self._axis_of[found.positions[0]]
        result = []
        for axis_index in np.unique(columns):
            value, axis = self._axes[axis_index]
            inside = found.positions[:, columns == axis_index] - self._start[value, axis]
            result.append((value, axis, inside))
        return result

    def keeps(self, found: ChannelClass, order: NDArray[np.intp]) -> bool:
        """Check on every tie that moving channel `order[k]` to place k leaves it as it is.

        Ties are one-to-one within a role, so a set of ties that is mapped onto itself means that permuting before
        an operator and permuting after it come to the same.
        """
        moved = np.arange(self._total, dtype=np.int64)
        moved[found.positions[order]] = found.positions
        for tie in self._ties:
            left, right = moved[tie.left], moved[tie.right]
            if np.array_equal(left, tie.left) and np.array_equal(right, tie.right):
                continue
            role = np.zeros(1, np.int64) if tie.role is None else tie.role
            before = np.sort((role * self._total + tie.left) * self._total + tie.right)
            if not np.array_equal(np.sort((role * self._total + left) * self._total + right), before):
                return False
        return True


def size_of(value: ir.Value, axis: int) -> int | None:
    """Size of an axis; None where it is unknown."""
    if value.shape is None or axis >= len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def rank_of(value: ir.Value) -> int | None:
    """Number of axes; None where it is unknown."""
    return None if value.shape is None else len(value.shape)


def dimension_of(value: ir.Value, axis: int) -> Any:
    """Size, or name of a dynamic size, or None; equal names mean equal sizes."""
    if value.shape is None:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else size.value


def _name(value: ir.Value) -> str:
    return repr(value.name)
