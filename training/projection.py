"""The pass over the weights after each optimizer step: new mask, kept part, residual, flips.

On a CPU it runs block by block through the cache (training/blocks.py), the blocks of all weights shared out to
threads. On a GPU with Triton it is one kernel for all weights (training/gpu_projection.py). Elsewhere it is torch, with
the masks of many weights found by the same few kernels.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from nm2trt.pattern import NMPattern
from nm2trt.training.blocks import LARGEST_M, Ints, Scratch, kept
from nm2trt.training.gpu_projection import fits_kernel, split_on_gpu
from nm2trt.training.masks import INTEGERS, nm_masks
from nm2trt.training.snapshot import is_gapless

_BLOCK = 1 << 18
"""Weights per block: scratch arrays of this size stay in cache, and threads rarely wait for the interpreter."""

_PARALLEL_FROM_WEIGHTS = 1 << 20
"""Fewer weights are projected sooner than threads are woken."""

_ARRAYS = {torch.int64: np.int64, torch.int32: np.int32, torch.int16: np.int16}

_MASK_NOW = np.uint8(1)

Piece = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Split:
    """A dense weight that is to be split into its N:M part and the rest, in place.

    Attributes:
        weight: W, any shape, floating; becomes E * W if `impose`.
        residual: Becomes (1 - E) * W if `impose`; None if nobody wants it.
        bits: uint8 of `weight`'s shape and strides; bit 0 holds the old mask and gets the new one.
        pattern: The pattern.
        axis: Reduction axis of `weight`.
        impose: Off, only the mask is recorded.
        hold: Split by the old mask instead of finding a new one.
    """

    weight: torch.Tensor
    residual: torch.Tensor | None
    bits: torch.Tensor
    pattern: NMPattern
    axis: int
    impose: bool
    hold: bool = False


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
    """Split one dense weight into its N:M part and the rest, in place; the arguments are `Split`'s.

    Returns:
        int64 scalar on the weight's device: how many mask bits changed.
    """
    return project_all([Split(weight, residual, bits, pattern, axis, impose=impose, hold=hold)])[0]


@torch.no_grad()
def project_all(splits: Sequence[Split]) -> list[torch.Tensor]:
    """Do all the splits; they share no memory.

    Returns:
        For each an int64 scalar on its weight's device: how many mask bits changed.
    """
    in_blocks: dict[int, list[int]] = {}
    pieces: list[Piece] = []
    weights = 0
    others: list[int] = []
    on_gpu: list[int] = []
    for index, split in enumerate(splits):
        if _fits_blocks(split):
            in_blocks[index] = []
            pieces += _pieces(split, in_blocks[index])
            weights += split.weight.numel()
        else:
            (on_gpu if fits_kernel(split) else others).append(index)
    _run(pieces, torch.get_num_threads() if weights >= _PARALLEL_FROM_WEIGHTS else 1)
    changed = {index: torch.tensor(sum(counts)) for index, counts in in_blocks.items()}
    counts_on_gpu = split_on_gpu([splits[index] for index in on_gpu])
    if counts_on_gpu is None:
        others += on_gpu
    else:
        changed |= zip(on_gpu, counts_on_gpu, strict=True)
    changed |= zip(others, _project_torch([splits[index] for index in others]), strict=True)
    return [changed[index] for index in range(len(splits))]


def _project_torch(splits: Sequence[Split]) -> list[torch.Tensor]:
    wanted = [split for split in splits if not split.hold]
    found = iter(nm_masks([split.weight for split in wanted], [(split.pattern, split.axis) for split in wanted]))
    changes = []
    for split in splits:
        old = (split.bits & 1).bool()
        mask = old if split.hold else next(found)
        changed = mask ^ old
        split.bits.bitwise_xor_(changed)
        if split.impose:
            pruned = ~mask
            if split.residual is not None:
                torch.where(pruned, split.weight, split.weight.new_zeros(()), out=split.residual)
            split.weight.masked_fill_(pruned, 0)
        changes.append(changed.count_nonzero())
    return changes


def _fits_blocks(split: Split) -> bool:
    """Whether weight, residual and bits lie in memory alike and without gaps."""
    weight, residual = split.weight, split.residual
    return (
        weight.device.type == "cpu"
        and type(weight.detach()) is torch.Tensor
        and weight.dtype in INTEGERS
        and split.pattern.m <= LARGEST_M
        and weight.numel() > 0
        and is_gapless(weight)
        and split.bits.stride() == weight.stride()
        and (residual is None or (residual.stride() == weight.stride() and residual.dtype == weight.dtype))
    )


def _flat(tensor: torch.Tensor, dtype: torch.dtype) -> Ints:
    """The tensor's memory as a 1-D array, without a copy."""
    bare = tensor.detach()
    line = torch.as_strided(bare, (bare.numel(),), (1,), bare.storage_offset())
    array: Ints = line.view(dtype).numpy()
    return array


def _pieces(split: Split, flips: list[int]) -> list[Piece]:
    """A weight's blocks, each of whole groups; each appends to `flips` when it has run."""
    integer = INTEGERS[split.weight.dtype]
    memory, seen = _flat(split.weight, integer), _flat(split.bits, torch.uint8)
    rest = None if split.residual is None or not split.impose else _flat(split.residual, integer)
    spread = split.weight.stride(split.axis)
    period = spread * split.pattern.m
    length = max(1, _BLOCK // period) * period
    return [
        partial(
            _project_block,
            memory[start : start + length],
            None if rest is None else rest[start : start + length],
            seen[start : start + length],
            split,
            length,
            flips,
        )
        for start in range(0, memory.size, length)
    ]


def _project_block(block: Ints, rest: Ints | None, seen: Ints, split: Split, length: int, flips: list[int]) -> None:
    scratch = _scratch(length, block.dtype.type)
    before = np.bitwise_and(seen, _MASK_NOW, out=scratch.before[: block.size])
    if split.hold:
        mask = before
    else:
        mask = kept(block, scratch, split.pattern, split.weight.stride(split.axis)).view(np.uint8)
        changed = np.bitwise_xor(before, mask, out=before)
        flips.append(int(np.count_nonzero(changed)))
        np.bitwise_xor(seen, changed, out=seen)
    if not split.impose:
        return
    # 1 or 0 becomes 0 or all ones, first in bytes, then widened.
    pruned = np.subtract(mask.view(np.int8), np.int8(1), out=scratch.wins[: block.size])
    selected = scratch.integers[0, : block.size]
    np.copyto(selected, pruned)
    selected = np.bitwise_and(block, selected, out=selected if rest is None else rest)
    np.bitwise_xor(block, selected, out=block)


class _PerThread(threading.local):
    """Scratch arrays are kept: fresh ones of this size would be paged in anew on every step."""

    def __init__(self) -> None:
        self.scratch: dict[type[Any], Scratch] = {}


_PER_THREAD = _PerThread()


def _scratch(length: int, kind: type[Any]) -> Scratch:
    mine = _PER_THREAD.scratch.get(kind)
    if mine is None or mine.length < length:
        mine = _PER_THREAD.scratch[kind] = Scratch(max(length, _BLOCK), kind)
    return mine


def _run(pieces: Sequence[Piece], threads: int) -> None:
    """Run the pieces in this thread and as many more as help, each taking the next one that is left."""
    left = deque(pieces)

    def drain() -> None:
        while True:
            try:
                piece = left.popleft()
            except IndexError:
                return
            piece()

    helpers = [_pool(threads).submit(drain) for _ in range(min(threads, len(pieces)) - 1)]
    drain()
    for helper in helpers:
        helper.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="nm2trt-project")
