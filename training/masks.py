"""N:M masks in torch: which weights of a group are the N largest."""

from __future__ import annotations

import torch

from nm2trt.pattern import NMPattern

_SORT_FROM_M = 33
"""Counting ranks costs (M - 1) / 2 passes over the weights, so large groups are sorted instead."""


@torch.no_grad()
def nm_mask(weight: torch.Tensor, pattern: NMPattern, axis: int) -> torch.Tensor:
    """Keep the N largest magnitudes of every group; of equal ones the lowest index wins.

    The winner among equals is fixed so that every rank of a distributed run finds the same mask.

    Args:
        weight: Any shape and floating dtype.
        pattern: The pattern to impose.
        axis: Reduction axis; its size is a multiple of M.

    Returns:
        Bool tensor of `weight`'s shape, True where kept; exactly N per group.
    """
    shape = weight.shape
    magnitude = weight.detach().abs().reshape(*shape[:axis], -1, pattern.m, *shape[axis + 1 :])
    kept = (
        _by_sort(magnitude, pattern, axis + 1) if pattern.m >= _SORT_FROM_M else _by_rank(magnitude, pattern, axis + 1)
    )
    return kept.flatten(axis, axis + 1)


def _by_rank(magnitude: torch.Tensor, pattern: NMPattern, axis: int) -> torch.Tensor:
    """Count for each weight the group members that beat it; the first N ranks are kept."""
    members = magnitude.unbind(axis)
    ranks = [torch.zeros(members[0].shape, dtype=torch.int8, device=magnitude.device) for _ in members]
    for low, first in enumerate(members):
        for high in range(low + 1, pattern.m):
            low_wins = first >= members[high]
            ranks[high] += low_wins
            ranks[low] += ~low_wins
    return torch.stack([rank < pattern.n for rank in ranks], dim=axis)


def _by_sort(magnitude: torch.Tensor, pattern: NMPattern, axis: int) -> torch.Tensor:
    order = magnitude.argsort(dim=axis, descending=True, stable=True)
    kept = torch.zeros_like(magnitude, dtype=torch.bool)
    return kept.scatter_(axis, order.narrow(axis, 0, pattern.n), value=True)
