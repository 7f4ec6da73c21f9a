"""N:M masks in torch, on any device: which weights of a group are the N largest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from nm2trt.pattern import NMPattern

INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
"""The integers that floats are made of."""

_SORT_FROM_M = 33
"""Ranks cost a comparison of all weights for each two group members, so large groups are sorted instead."""

_TOGETHER = 1 << 24
"""Weights whose masks are found at once; their magnitudes are copied for it."""


@torch.no_grad()
def nm_mask(weight: torch.Tensor, pattern: NMPattern, axis: int) -> torch.Tensor:
    """Keep the N largest magnitudes of every group; of equal ones the lowest index wins.

    The winner among equals is fixed so that every rank of a distributed run finds the same mask. NaN counts as larger
    than infinity.

    Args:
        weight: Any shape and floating dtype.
        pattern: The pattern to impose.
        axis: Reduction axis; its size is a multiple of M.

    Returns:
        Bool tensor of `weight`'s shape, True where kept; exactly N per group.
    """
    shape = weight.shape
    # Not -1: of a shard without rows it could not be inferred.
    groups = shape[axis] // pattern.m
    magnitude = _magnitude(weight).reshape(*shape[:axis], groups, pattern.m, *shape[axis + 1 :])
    return _kept(magnitude, pattern, axis + 1).flatten(axis, axis + 1)


@torch.no_grad()
def nm_masks(weights: Sequence[torch.Tensor], how: Sequence[tuple[NMPattern, int]]) -> Iterator[torch.Tensor]:
    """`nm_mask` of many weights, those of one pattern, dtype and device in one go.

    A kernel's launch costs a GPU as much time as a small layer's masks do.

    Args:
        weights: The weights.
        how: Pattern and reduction axis of each.

    Yields:
        Their masks, in order.
    """
    waiting: list[tuple[torch.Tensor, NMPattern, int]] = []
    for weight, (pattern, axis) in zip(weights, how, strict=True):
        if waiting and not _may_join(waiting, weight, pattern):
            yield from _masks_at_once(waiting)
            waiting = []
        waiting.append((weight, pattern, axis))
    if waiting:
        yield from _masks_at_once(waiting)


def _may_join(waiting: Sequence[tuple[torch.Tensor, NMPattern, int]], weight: torch.Tensor, pattern: NMPattern) -> bool:
    first = waiting[0]
    return (
        first[1] == pattern
        and first[0].dtype == weight.dtype
        and first[0].device == weight.device
        and sum(entry[0].numel() for entry in waiting) + weight.numel() <= _TOGETHER
    )


def _masks_at_once(waiting: Sequence[tuple[torch.Tensor, NMPattern, int]]) -> Iterator[torch.Tensor]:
    pattern = waiting[0][1]
    if len(waiting) == 1:
        weight, _, axis = waiting[0]
        yield nm_mask(weight, pattern, axis)
        return
    moved = [weight.detach().movedim(axis, -1) for weight, _, axis in waiting]
    groups_GM = torch.cat([weight.reshape(-1, pattern.m) for weight in moved])
    kept_GM = _kept(_magnitude(groups_GM), pattern, 1)
    parts = kept_GM.split_with_sizes([weight.numel() // pattern.m for weight in moved])
    for (_, _, axis), weight, part in zip(waiting, moved, parts, strict=True):
        yield part.view(weight.shape).movedim(-1, axis)


def _magnitude(weight: torch.Tensor) -> torch.Tensor:
    """What orders like |weight|: its integers without the sign bit, so that NaN has a place in the order, too."""
    integer = INTEGERS.get(weight.dtype)
    if integer is None:
        return weight.detach().abs()
    return weight.detach().view(integer) & torch.iinfo(integer).max


def _kept(magnitude: torch.Tensor, pattern: NMPattern, axis: int) -> torch.Tensor:
    if pattern.n == 1:
        return _kept_by_argmax(magnitude, axis)
    if pattern.m >= _SORT_FROM_M:
        return _kept_by_sort(magnitude, pattern, axis)
    return _kept_by_rank(magnitude, pattern, axis)


def _kept_by_argmax(magnitude: torch.Tensor, axis: int) -> torch.Tensor:
    """Of equal ones, torch's argmax is documented to find the first."""
    winner = magnitude.argmax(dim=axis, keepdim=True)
    kept = torch.zeros_like(magnitude, dtype=torch.bool)
    return kept.scatter_(axis, winner, value=True)


def _kept_by_rank(magnitude: torch.Tensor, pattern: NMPattern, axis: int) -> torch.Tensor:
    """Count for each weight the group members that beat it, one member against all later ones; the first N are kept."""
    ranks = torch.zeros_like(magnitude, dtype=torch.int8)
    for place in range(pattern.m - 1):
        later = pattern.m - 1 - place
        beats = magnitude.narrow(axis, place, 1) >= magnitude.narrow(axis, place + 1, later)
        ranks.narrow(axis, place + 1, later).add_(beats)
        ranks.narrow(axis, place, 1).add_(later).sub_(beats.sum(dim=axis, keepdim=True, dtype=torch.int8))
    return ranks < pattern.n


def _kept_by_sort(magnitude: torch.Tensor, pattern: NMPattern, axis: int) -> torch.Tensor:
    order = magnitude.argsort(dim=axis, descending=True, stable=True)
    kept = torch.zeros_like(magnitude, dtype=torch.bool)
    return kept.scatter_(axis, order.narrow(axis, 0, pattern.n), value=True)
