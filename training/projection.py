"""The pass over a weight after each optimizer step: new mask, kept part, residual, flips.

On a CPU it runs block by block through the cache in numpy, on the integers that the floats are made of: with the
sign bit cleared they order like the magnitudes, in every floating dtype, and comparing, masking and splitting become
vector instructions (torch's own comparisons to bool and masked fills on a CPU do not; benchmarks/train_step.py).
Elsewhere it is plain torch.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nm2trt.pattern import NMPattern
from nm2trt.training.masks import nm_mask

Ints = NDArray[Any]

_BLOCK = 1 << 18
"""Weights per block: scratch arrays of this size stay in cache, and threads rarely wait for the interpreter."""

_LARGEST_M = 32
"""Each group member costs a pass over the block; beyond this, sorting in `nm_mask` is no slower."""

_INTEGERS = {
    torch.float64: (torch.int64, np.int64),
    torch.float32: (torch.int32, np.int32),
    torch.float16: (torch.int16, np.int16),
    torch.bfloat16: (torch.int16, np.int16),
}

MASK_NOW = np.uint8(1)


@torch.no_grad()
def project(
    weight: torch.Tensor,
    residual: torch.Tensor | None,
    bits: torch.Tensor,
    pattern: NMPattern,
    axis: int,
    *,
    impose: bool,
    hold: bool = False,
) -> torch.Tensor:
    """Split a dense weight into its N:M part and the rest, in place.

    Args:
        weight: W, any shape, floating; becomes E * W if `impose`.
        residual: Becomes (1 - E) * W if `impose`; None if nobody wants it.
        bits: uint8 of `weight`'s shape and strides; bit 0 holds the old mask and gets the new one.
        pattern: The pattern.
        axis: Reduction axis of `weight`.
        impose: Off, only the mask is recorded.
        hold: Split by the old mask instead of finding a new one.

    Returns:
        int64 scalar on the weight's device: how many mask bits changed.
    """
    if _fits_blocks(weight, residual, bits, pattern):
        split = residual if impose else None
        return torch.tensor(_project_blocks(weight, split, bits, pattern, axis, impose=impose, hold=hold))
    mask = (bits & 1).bool() if hold else nm_mask(weight, pattern, axis)
    changed = mask ^ (bits & 1).bool()
    bits ^= changed
    if impose:
        if residual is not None:
            torch.where(mask, residual.new_zeros(()), weight, out=residual)
        weight.masked_fill_(~mask, 0)
    return changed.count_nonzero()


def _fits_blocks(weight: torch.Tensor, residual: torch.Tensor | None, bits: torch.Tensor, pattern: NMPattern) -> bool:
    """Whether the three lie in memory alike and without gaps."""
    return (
        weight.device.type == "cpu"
        and type(weight.detach()) is torch.Tensor
        and weight.dtype in _INTEGERS
        and pattern.m <= _LARGEST_M
        and weight.numel() > 0
        and _is_dense(weight)
        and bits.stride() == weight.stride()
        and (residual is None or residual.stride() == weight.stride())
    )


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill their memory without gaps, in any order of the axes."""
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True


def _flat(tensor: torch.Tensor, dtype: torch.dtype) -> Ints:
    """The tensor's memory as a 1-D array, without a copy."""
    bare = tensor.detach()
    line = torch.as_strided(bare, (bare.numel(),), (1,), bare.storage_offset())
    array: Ints = line.view(dtype).numpy()
    return array


def _project_blocks(
    weight: torch.Tensor,
    residual: torch.Tensor | None,
    bits: torch.Tensor,
    pattern: NMPattern,
    axis: int,
    *,
    impose: bool,
    hold: bool,
) -> int:
    integer, kind = _INTEGERS[weight.dtype]
    memory, seen = _flat(weight, integer), _flat(bits, torch.uint8)
    rest = None if residual is None else _flat(residual, integer)
    spread = weight.stride(axis)
    period = spread * pattern.m
    length = max(1, min(memory.size, _BLOCK) // period) * period
    work = _scratch(length, kind)
    flips = 0
    for start in range(0, memory.size, length):
        block = memory[start : start + length]
        old = seen[start : start + length]
        before = np.bitwise_and(old, MASK_NOW, out=work.before[: block.size])
        if hold:
            kept = before.view(np.bool_)
        else:
            kept = _kept(block, work, pattern, spread)
            changed = np.bitwise_xor(before, kept.view(np.uint8), out=before)
            flips += int(np.count_nonzero(changed))
            np.bitwise_xor(old, changed, out=old)
        if not impose:
            continue
        selected = work.integers[: block.size]
        # 0 or 1 becomes 0 or all ones.
        np.copyto(selected, kept.view(np.int8))
        np.negative(selected, out=selected)
        np.bitwise_and(block, selected, out=selected)
        if rest is not None:
            np.bitwise_xor(block, selected, out=rest[start : start + length])
        block[:] = selected
    return flips


class _Work:
    """Scratch arrays of one block."""

    def __init__(self, length: int, kind: type[Any]) -> None:
        self.integers = np.empty(length, kind)
        self.beats = np.empty(length, np.bool_)
        self.wins = np.empty(length, np.int8)
        self.kept = np.empty(length, np.bool_)
        self.before = np.empty(length, np.uint8)
        self.magnitude_bits = kind(np.iinfo(kind).max)


class _PerThread(threading.local):
    """Scratch arrays are kept: fresh ones of this size would be paged in anew on every step."""

    def __init__(self) -> None:
        self.works: dict[tuple[int, type[Any]], _Work] = {}


_PER_THREAD = _PerThread()
_MOST_SCRATCH = 8


def _scratch(length: int, kind: type[Any]) -> _Work:
    works = _PER_THREAD.works
    if (length, kind) not in works:
        if len(works) >= _MOST_SCRATCH:
            works.clear()
        works[length, kind] = _Work(length, kind)
    return works[length, kind]


def _kept(block: Ints, work: _Work, pattern: NMPattern, spread: int) -> NDArray[np.bool_]:
    """Count for each weight the group members that it beats; the N with the most wins are kept.

    Members of a group lie `spread` apart in memory. A weight starts with a win over each member before it and
    loses it again where that member is at least as large, so equal ones go to the lowest index.
    """
    places, together = _geometry(pattern.m, spread, work.wins.size)
    size = block.size
    magnitude = np.bitwise_and(block, work.magnitude_bits, out=work.integers[:size])
    wins = work.wins[:size]
    wins[:] = places[:size]
    for distance in range(1, pattern.m):
        offset = distance * spread
        beats = np.greater_equal(magnitude[:-offset], magnitude[offset:], out=work.beats[: size - offset])
        np.logical_and(beats, together[distance - 1][: beats.size], out=beats)
        won = beats.view(np.int8)
        np.add(wins[:-offset], won, out=wins[:-offset])
        np.subtract(wins[offset:], won, out=wins[offset:])
    return np.greater_equal(wins, pattern.m - pattern.n, out=work.kept[:size])


@lru_cache(maxsize=64)
def _geometry(m: int, spread: int, length: int) -> tuple[NDArray[np.int8], tuple[NDArray[np.bool_], ...]]:
    """Index of each place within its group, and whether the place `distance` further is in the same group."""
    places = (np.arange(length) // spread % m).astype(np.int8)
    return places, tuple(places < m - distance for distance in range(1, m))
