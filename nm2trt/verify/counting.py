"""Count non-zeros per N:M group at memory speed. One pass, in pieces that stay in the cache.

The array is seen as [outer, axis, inner] in memory order. A piece becomes bytes (1 where a weight is not zero), and
M shifted copies of them are added up: position i then holds the count of the group that starts at i. Only the
positions at which a group really starts are kept. Adding where no group starts is wasted work, but it runs over
contiguous bytes, which costs less than gathering strided ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.pattern import NMPattern

Array = NDArray[Any]
_PIECE = 1 << 18
"""Weights per piece: their bytes and sums fit a second-level cache."""

_HALVES = {"float16": 0x7C00, "bfloat16": 0x7F80}
"""Two-byte floats, and the bits of infinity: magnitudes from there up are infinity or NaN."""


@dataclass(frozen=True, slots=True)
class GroupCount:
    """What one pass over a weight finds."""

    groups: int
    violations: int
    """Groups with more than N non-zeros."""
    first: tuple[int, ...] | None
    """Index of the first weight of the first such group."""
    nonzeros: int
    nonfinite: int
    """NaN and infinite weights; they count as non-zeros."""
    largest: int
    """Most non-zeros in any group."""


def count_groups(weight: Array, pattern: NMPattern, axis: int) -> GroupCount:
    """Judge every aligned group of M along `axis`; -0.0 is zero, NaN and infinity are not.

    Args:
        weight: Any shape and type, also bfloat16, float8 and int4 of ml_dtypes.
        pattern: Its M divides the axis.
        axis: The reduction axis.

    Raises:
        ValueError: M does not divide the axis.
    """
    axis %= weight.ndim
    if weight.shape[axis] % pattern.m:
        raise ValueError(f"axis {axis} of shape {weight.shape} is no multiple of {pattern.m}")
    flat = np.ascontiguousarray(weight).reshape(-1)
    inner = math.prod(weight.shape[axis + 1 :])
    span = pattern.m * inner
    tally = _Tally(pattern, inner)
    step = max(1, _PIECE // max(span, 1)) * span
    for start in range(0, flat.size, max(step, 1)):
        tally.add(flat[start : start + step], start)
    first = None if tally.first is None else tuple(int(i) for i in np.unravel_index(tally.first, weight.shape))
    groups = flat.size // pattern.m
    return GroupCount(groups, tally.violations, first, tally.nonzeros, tally.nonfinite, tally.largest)


class _Tally:
    """Sums over pieces, with buffers that all pieces share."""

    def __init__(self, pattern: NMPattern, inner: int) -> None:
        self._n, self._m, self._inner = pattern.n, pattern.m, inner
        self._starts: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self.violations = self.nonzeros = self.nonfinite = self.largest = 0
        self.first: int | None = None

    def add(self, piece: Array, offset: int) -> None:
        bits, nonfinite = nonzero_bytes(piece)
        self.nonzeros += int(np.count_nonzero(bits))
        self.nonfinite += nonfinite
        sums = self._window_sums(bits)
        if self._inner > 1:
            # Positions between two group starts hold sums across groups.
            sums *= self._group_starts(piece.size)[: sums.size]
        else:
            sums = sums[:: self._m]
        largest = int(sums.max(initial=0))
        self.largest = max(self.largest, largest)
        if largest > self._n:
            over = sums > self._n
            self.violations += int(np.count_nonzero(over))
            if self.first is None:
                self.first = offset + int(over.argmax()) * (self._m if self._inner == 1 else 1)

    def _window_sums(self, bits: NDArray[np.uint8]) -> Array:
        """At i: bits[i] + bits[i + inner] + ... over M terms, by doubling."""
        doubled: Array = bits if self._m < 256 else bits.astype(np.uint16)
        total: Array | None = None
        width, done = 1, 0
        while True:
            if self._m & width:
                total = doubled if total is None else _added(total, doubled, done * self._inner)
                done += width
            if done == self._m:
                assert total is not None
                return total.copy() if total is bits else total
            doubled = _added(doubled, doubled, width * self._inner)
            width *= 2

    def _group_starts(self, size: int) -> NDArray[np.uint8]:
        if self._starts.size < size:
            tile = np.zeros((size // (self._m * self._inner), self._m, self._inner), np.uint8)
            tile[:, 0] = 1
            self._starts = tile.reshape(-1)
        return self._starts


def _added(left: Array, right: Array, shift: int) -> Array:
    size = right.size - shift
    return left[:size] + right[shift:]


def nonzero_bytes(piece: Array) -> tuple[NDArray[np.uint8], int]:
    """Return 1 where a weight is not zero, and the number of NaN and infinite weights.

    Args:
        piece: [size], contiguous.
    """
    name = piece.dtype.name
    if not piece.dtype.isnative:
        piece = piece.astype(piece.dtype.newbyteorder("="))
    if name in _HALVES:
        # Comparisons of 16-bit floats convert every value; bits do not.
        magnitude = piece.view(np.uint16) & np.uint16(0x7FFF)
        bad = 0
        if magnitude.size and magnitude.max() >= _HALVES[name]:
            bad = int(np.count_nonzero(magnitude >= _HALVES[name]))
        return (magnitude != 0).view(np.uint8), bad
    if piece.dtype.kind in "biu":
        return (piece != 0).view(np.uint8), 0
    if issubclass(piece.dtype.type, np.inexact):
        finite = np.isfinite(piece)
        bad = 0 if finite.all() else int(finite.size - np.count_nonzero(finite))
        return (piece != 0).view(np.uint8), bad
    # What is left are ml_dtypes' one-byte types: their 256 values once, then a look-up.
    every = np.arange(256, dtype=np.uint8).view(piece.dtype).astype(np.float32)
    codes = piece.view(np.uint8)
    bad = int(np.count_nonzero(~np.isfinite(every)[codes]))
    return (every != 0)[codes].view(np.uint8), bad
