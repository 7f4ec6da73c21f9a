"""Masks of weights that are sparse already: taken as they are, checked, and held."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nm2trt.errors import ConfigError
from nm2trt.training.layer_state import SparseLayer
from nm2trt.training.shards import sum_over_shards

_LISTED = 4


@torch.no_grad()
def take_masks(layers: Sequence[SparseLayer]) -> None:
    """Make the non-zero weights of each layer its mask. Where weights are sharded, every process must call this.

    Raises:
        ConfigError: Weights are not N:M; names the layers, and how many of their groups are not.
    """
    illegal = []
    for layer in layers:
        kept = layer.weight() != 0
        last = kept.movedim(layer.axis, -1)
        groups = last.reshape(*last.shape[:-1], -1, layer.pattern.m).sum(-1)
        counts = torch.stack([(groups > layer.pattern.n).sum(), torch.tensor(groups.numel(), device=groups.device)])
        violations, total = sum_over_shards(counts, layer.parameter).tolist()
        if violations:
            illegal.append(f"{layer.name} ({violations} of {total} groups are not {layer.pattern})")
        layer.bits.copy_(kept)
    if illegal:
        more = f" and {len(illegal) - _LISTED} more" if len(illegal) > _LISTED else ""
        raise ConfigError(
            f"no masks to hold in {', '.join(illegal[:_LISTED])}{more}",
            where="hold_masks",
            hint="exclude these layers, give another pattern, or make them sparse first (nm2trt prune)",
        )
