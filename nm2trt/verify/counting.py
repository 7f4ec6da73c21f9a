"""Count non-zeros per N:M group at memory speed. One pass, in pieces that stay in the cache.

The array is seen as [outer, axis, inner] in memory order. A piece becomes bytes, 1 where a weight is not zero; then the
M bytes of a group are added, in one of three ways:

- neighbors (inner is 1; M is 2, 4 or 8): a group is one integer, and a product with 0x0101... leaves the sum in its
  highest byte;
- long rows (inner of 64 and more): M contiguous rows are added;
- anything else (3x3 kernels): M shifted copies of all bytes are added, so that position i holds the count of the
  group that starts at i. Only the positions at which a group really starts are kept. Adding where no group starts is
  wasted work, but it runs over contiguous bytes, which costs less than gathering strided ones.

All steps write into memory that all pieces share.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.pattern import NMPattern

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
_PIECE = 3 << 18
"""Weights per piece: large enough that numpy's fixed cost per call does not count, and their bytes and sums still stay
in the last cache."""
_KEPT_BYTES = 1 << 23
_LONG_ROW = 64
_MAGNITUDE = np.uint16(0x7FFF)
_TILE = 2048

_HALVES = {"float16": 0x7C00, "bfloat16": 0x7F80}
"""Two-byte floats, and the bits of infinity: magnitudes from there up are infinity or NaN."""
_LANES: dict[int, tuple[type[np.unsignedinteger[Any]], int]] = {
    2: (np.uint16, 0x0101),
    4: (np.uint32, 0x01010101),
    8: (np.uint64, 0x0101010101010101),
}
"""Group size -> the integer that holds one byte per weight, and the factor that sums them into its highest byte."""


@dataclass(frozen=True, slots=True)
class GroupCount:
    """What one pass over a weight finds."""

    groups: int
    violations: int
    """Groups with more than N non-zeros."""
    first: tuple[int, ...] | None
    """Index of the first weight of the first such group."""
    first_values: tuple[float, ...]
    """That group's M values; empty where there is none."""
    nonzeros: int
    nonfinite: int
    """NaN and infinite weights; they count as non-zeros."""
    largest: int
    """Most non-zeros in any group."""


def count_groups(weight: Array, pattern: NMPattern, axis: int) -> GroupCount:
    """Check every aligned group of M along `axis`; -0.0 is zero, NaN and infinity are not.

    Args:
        weight: Any shape and type, also bfloat16, float8 and int4 of ml_dtypes.
        pattern: Its M divides the axis.
        axis: The reduction axis.

    Raises:
        ValueError: M does not divide the axis.
    """
    flat = np.ascontiguousarray(weight).reshape(-1)
    return count_ranges(lambda start, stop: flat[start:stop], weight.shape, pattern, axis % weight.ndim)


def count_ranges(
    load: Callable[[int, int], Array], shape: tuple[int, ...], pattern: NMPattern, axis: int
) -> GroupCount:
    """Check a weight without having all of it in memory.

    Args:
        load: Values from `start` to before `stop`, in memory order and flat.
        shape: Of the whole weight.
        pattern: As `count_groups` takes it.
        axis: As `count_groups` takes it; 0 or more.

    Raises:
        ValueError: M does not divide the axis.
    """
    if shape[axis] % pattern.m:
        raise ValueError(f"axis {axis} of shape {shape} is no multiple of {pattern.m}")
    size, inner = math.prod(shape), math.prod(shape[axis + 1 :])
    span = pattern.m * inner
    step = max(1, _PIECE // max(span, 1)) * span
    tally = _Tally(pattern, inner)
    for start in range(0, size, max(step, 1)):
        tally.add(load(start, min(start + step, size)), start)
    first = None if tally.first is None else tuple(int(i) for i in np.unravel_index(tally.first, shape))
    return GroupCount(
        groups=size // pattern.m,
        violations=tally.violations,
        first=first,
        first_values=tally.first_values,
        nonzeros=tally.nonzeros,
        nonfinite=tally.nonfinite,
        largest=tally.largest,
    )


class _Scratch(threading.local):
    """Memory that all pieces of all weights share, by purpose: fresh pages cost more than the arithmetic on them."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[np.uint8]] = {}

    def take(self, purpose: str, size: int, kind: Any) -> Array:
        """An array [size] with whatever was in it; the same memory at every call with this purpose."""
        wanted = size * np.dtype(kind).itemsize
        held = self._held.get(purpose)
        if held is None or held.size < wanted:
            # What only one enormous group needed is not kept for ever.
            held = np.empty(max(wanted, 1), np.uint8)
            if wanted <= _KEPT_BYTES:
                self._held[purpose] = held
        return held[:wanted].view(kind)


_SCRATCH = _Scratch()


class _Tally:
    """Sums over pieces."""

    def __init__(self, pattern: NMPattern, inner: int) -> None:
        self._n, self._m, self._inner = pattern.n, pattern.m, inner
        self._nonzero: _NonZero | None = None
        self._wide: Any = np.uint8 if self._m < 256 else np.uint16
        span = self._m * inner
        self._tile = max(1, _TILE // max(span, 1)) * span
        self._starts: Bytes | None = None
        self.violations = self.nonzeros = self.nonfinite = self.largest = 0
        self.first: int | None = None
        self.first_values: tuple[float, ...] = ()

    def add(self, piece: Array, offset: int) -> None:
        if self._nonzero is None:
            self._nonzero = _NonZero(piece.dtype)
        bits, nonfinite = self._nonzero(piece)
        self.nonzeros += int(np.count_nonzero(bits))
        self.nonfinite += nonfinite
        if self._inner == 1 and self._m in _LANES:
            largest, sums, stride = self._lanes(bits)
        elif self._inner >= _LONG_ROW and self._wide is np.uint8:
            largest, sums, stride = self._rows(bits)
        else:
            largest, sums, stride = self._windows(bits)
        self.largest = max(self.largest, largest)
        if largest > self._n:
            over = sums > self._n
            self.violations += int(np.count_nonzero(over))
            if self.first is None:
                self._note_first(piece, int(over.argmax()), stride, offset)

    def _note_first(self, piece: Array, position: int, stride: int, offset: int) -> None:
        if stride:
            start = position * stride
        else:
            row, column = divmod(position, self._inner)
            start = row * self._m * self._inner + column
        self.first = offset + start
        self.first_values = tuple(float(value) for value in piece[start :: self._inner][: self._m])

    # Each returns the most non-zeros in a group, the sums, and how far apart in the piece two sums' groups start
    # (0: rows of sums)

    def _lanes(self, bits: Bytes) -> tuple[int, Array, int]:
        kind, factor = _LANES[self._m]
        lanes = bits.view(kind)
        shift = 8 * (self._m - 1)
        product = _SCRATCH.take("sums 0", lanes.size, kind)
        np.multiply(lanes, kind(factor), out=product)
        largest = _most(product) >> shift
        return largest, product if largest <= self._n else product >> kind(shift), self._m

    def _rows(self, bits: Bytes) -> tuple[int, Array, int]:
        rows = bits.reshape(-1, self._m, self._inner)
        sums = _SCRATCH.take("sums 0", bits.size // self._m, np.uint8).reshape(-1, self._inner)
        np.add(rows[:, 0], rows[:, 1], out=sums)
        for row in range(2, self._m):
            np.add(sums, rows[:, row], out=sums)
        return _most(sums.reshape(-1)), sums, 0

    def _windows(self, bits: Bytes) -> tuple[int, Array, int]:
        sums = self._window_sums(bits)
        if self._inner == 1:
            sums = sums[:: self._m]
            return _most(sums), sums, self._m
        # Positions between two group starts hold sums across groups. The maximum over tiles of whole groups comes
        # first: it leaves one tile to mask instead of all.
        starts, tile = self._group_starts(), self._tile
        whole = sums.size // tile * tile
        largest = _most(sums[whole:] * starts[: sums.size - whole])
        if whole:
            tops = np.maximum.reduce(sums[:whole].reshape(-1, tile), axis=0)
            largest = max(largest, _most(tops * starts))
        if largest > self._n:
            sums = sums * np.resize(starts, sums.size)
        return largest, sums, 1

    def _window_sums(self, bits: Bytes) -> Array:
        """At i: bits[i] + bits[i + inner] + ... over M terms, by doubling."""
        doubled: Array = bits if self._wide is np.uint8 else bits.astype(np.uint16)
        total: Array | None = None
        width, done = 1, 0
        while True:
            if self._m & width:
                total = doubled if total is None else _added(total, doubled, done * self._inner)
                done += width
            if done == self._m:
                assert total is not None
                return total
            # A total is only ever kept across steps where M is no power of two; then nothing may be overwritten.
            out = (
                None if total is not None else _SCRATCH.take(f"sums {width.bit_length() % 2}", doubled.size, self._wide)
            )
            doubled = _added(doubled, doubled, width * self._inner, out)
            width *= 2

    def _group_starts(self) -> Bytes:
        """1 where a group starts, 0 elsewhere; one tile, after which it repeats."""
        if self._starts is None:
            tile = np.zeros((self._tile // (self._m * self._inner), self._m, self._inner), np.uint8)
            tile[:, 0] = 1
            self._starts = tile.reshape(-1)
        return self._starts


def _most(sums: Array) -> int:
    return int(np.maximum.reduce(sums, initial=0))


def _added(left: Array, right: Array, shift: int, out: Array | None = None) -> Array:
    size = right.size - shift
    return np.add(left[:size], right[shift:], out=None if out is None else out[:size])


class _NonZero:
    """Turns weights of one type into bytes; its answer lives until the next call.

    Whatever can be decided once is decided here: the pieces are so small that Python's own steps count.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype.newbyteorder("=") if not dtype.isnative else dtype
        self._infinity = _HALVES.get(dtype.name, 0)
        if self._infinity:
            self._step = self._halves
        elif dtype.kind in "biu":
            self._step = self._integers
        elif issubclass(dtype.type, np.inexact):
            self._step = self._floats
        else:
            # What is left are ml_dtypes' one-byte types: their 256 values once, then a look-up.
            self._step = self._table
            self._values = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)

    def __call__(self, piece: Array) -> tuple[Bytes, int]:
        """Return 1 where a weight is not zero, and the number of NaN and infinite weights.

        Args:
            piece: [size], contiguous.
        """
        if piece.dtype is not self._dtype:
            piece = piece.astype(self._dtype, copy=False)
        bits: NDArray[np.bool_] = _SCRATCH.take("bits", piece.size, np.bool_)
        return bits.view(np.uint8), self._step(piece, bits)

    def _halves(self, piece: Array, bits: NDArray[np.bool_]) -> int:
        # Comparisons of 16-bit floats convert every value; bits do not.
        magnitude = _SCRATCH.take("words", piece.size, np.uint16)
        np.bitwise_and(piece.view(np.uint16), _MAGNITUDE, out=magnitude)
        np.not_equal(magnitude, 0, out=bits)
        if np.maximum.reduce(magnitude, initial=0) < self._infinity:
            return 0
        return int(np.count_nonzero(magnitude >= self._infinity))

    @staticmethod
    def _integers(piece: Array, bits: NDArray[np.bool_]) -> int:
        np.not_equal(piece, 0, out=bits)
        return 0

    @staticmethod
    def _floats(piece: Array, bits: NDArray[np.bool_]) -> int:
        np.isfinite(piece, out=bits)
        bad = 0 if np.logical_and.reduce(bits) else int(bits.size - np.count_nonzero(bits))
        np.not_equal(piece, 0, out=bits)
        return bad

    def _table(self, piece: Array, bits: NDArray[np.bool_]) -> int:
        codes = piece.view(np.uint8)
        np.take(self._values != 0, codes, out=bits)
        return int(np.count_nonzero(~np.isfinite(self._values)[codes]))
