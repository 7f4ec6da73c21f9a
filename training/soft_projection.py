"""What the parameter holds after a step where it is not E * W: S-STE's soft threshold and the decaying mask.

Both start from the split into kept weights and a residual of the pruned ones, whose supports are disjoint, so that
adding the two gives W exactly. Plain torch operations, on any device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nm2trt.training.layer_state import SparseLayer, restore_all, split_all, zero_pruned
from nm2trt.training.shards import sum_over_shards


@torch.no_grad()
def soft_threshold(layer: SparseLayer) -> None:
    """S-STE: the parameter becomes beta * sign(W) * (abs(W) - t) where kept; the residual holds the whole W.

    t is the largest pruned magnitude of the group: of N:M the (M - N)-th smallest one, for which Hu et al. (NeurIPS
    2024) define 2:4 only. beta makes the result the best approximation of W by least squares when it is first needed,
    and stays from then on.

    Args:
        layer: Just split: the parameter holds E * W, the residual (1 - E) * W.
    """
    weight, residual = layer.weight(), layer.residual
    if residual is None:
        return
    shape, axis, m = weight.shape, layer.axis, layer.pattern.m
    # An axis can be split in two without a copy, whatever the strides.
    groups = (*shape[:axis], shape[axis] // m, m, *shape[axis + 1 :])
    threshold = residual.abs().view(groups).amax(axis + 1, keepdim=True)
    residual.add_(weight)
    dense = residual.view(groups)
    # W less what of it lies within the threshold: 0 where pruned, and sign(W) * (abs(W) - t) where kept.
    torch.sub(dense, dense.clamp(-threshold, threshold), out=weight.view(groups))
    if layer.beta is None:
        layer.beta = _scale(layer, residual, weight)
    weight.mul_(layer.beta.to(weight.device, weight.dtype))
    layer.is_whole = True


def _scale(layer: SparseLayer, dense: torch.Tensor, shrunk: torch.Tensor) -> torch.Tensor:
    """<W, S(W)> / <S(W), S(W)> of the whole weight, a float64 scalar (float32 where there is no float64)."""
    accurate = torch.float32 if dense.device.type == "mps" else torch.float64
    wide, narrow = dense.to(accurate), shrunk.to(accurate)
    sums = torch.stack([(wide * narrow).sum(), narrow.square().sum()])
    sums = sum_over_shards(sums, layer.parameter)
    return torch.where(sums[1] > 0, sums[0] / sums[1], torch.ones_like(sums[0]))


@torch.no_grad()
def fade(layer: SparseLayer, factor: float) -> None:
    """Decaying mask: the parameter becomes (E + (1 - E) * factor) * W; the residual stays (1 - E) * W.

    Args:
        layer: Just split.
        factor: Of pruned weights, from 1 down to 0.
    """
    layer.factor = factor
    if factor and layer.residual is not None:
        layer.weight().add_(layer.residual, alpha=factor)


def soften(layers: Sequence[SparseLayer], method: str, factor: float) -> None:
    """Make of split layers what the method has their parameters hold."""
    for layer in layers:
        if method == "s-ste":
            soft_threshold(layer)
        elif method == "decaying-mask":
            fade(layer, factor)


def harden(layers: Sequence[SparseLayer]) -> None:
    """Before masks are held: they are N:M, pruned weights are zero, and the residual holds only what was pruned."""
    if wide := [layer for layer in layers if layer.kept is not None]:
        restore_all(wide)
        for layer in wide:
            layer.kept = None
        split_all(wide, impose=True, hold=False)
    zero_pruned([layer for layer in layers if layer.factor])
    for layer in layers:
        if layer.is_whole and layer.residual is not None:
            layer.residual.masked_fill_(layer.mask(), 0)
        layer.is_whole, layer.factor = False, 0.0
