"""Averaged weights (EMA, SWA): a mean over moments with different masks is dense, so it is projected before use.

Works on torch's `AveragedModel`, timm's `ModelEma`, `ModelEmaV2` and `ModelEmaV3`, or any module with the network's
parameter names. The average itself has to stay dense while it is updated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.training.masks import nm_mask
from nm2trt.training.sparsifier import Sparsifier

Masks = Literal["own", "trained"]


def averaged_network(average: object) -> nn.Module:
    """The network inside an average: `.module` (torch, timm's V2 and V3), `.ema` (timm's first), or the module itself.

    Raises:
        ConfigError: There is none.
    """
    found = average
    for _ in range(8):
        for name in ("ema", "module", "_orig_mod"):
            inner = getattr(found, name, None)
            if isinstance(inner, nn.Module) and _is_wrapper(found):
                found = inner
                break
        else:
            break
    if not isinstance(found, nn.Module):
        raise ConfigError(
            f"{type(average).__name__} holds no network", where="average", hint="give an AveragedModel or a ModelEma"
        )
    return found


def _is_wrapper(found: object) -> bool:
    """A module is one if all of its parameters are the inner one's."""
    if not isinstance(found, nn.Module):
        return True
    return len(list(found.children())) == 1 and not list(found.parameters(recurse=False))


@torch.no_grad()
def project_average(average: object, sparsifier: Sparsifier, *, masks: Masks = "own") -> nn.Module:
    """Make an averaged network N:M in place, for good: for its last use, such as saving or `update_bn`.

    Args:
        average: `AveragedModel`, `ModelEma` or a module.
        sparsifier: Of the network that was averaged; says which weights have which pattern.
        masks: "own": the largest magnitudes of the average; "trained": the trained network's masks of this moment.

    Returns:
        The averaged network. Statistics of batch norm are of the dense average until `update_bn`.

    Raises:
        ConfigError: A sparse weight is missing in the average or has another shape.
    """
    network = averaged_network(average)
    for weight, mask in _masks(network, sparsifier, masks):
        weight.mul_(mask)
    return network


@contextmanager
def sparse_average(average: object, sparsifier: Sparsifier, *, masks: Masks = "own") -> Iterator[nn.Module]:
    """The averaged network, N:M inside of `with`, dense again after it; arguments as for `project_average`.

    Raises:
        ConfigError: A sparse weight is missing in the average or has another shape.
    """
    network = averaged_network(average)
    with torch.no_grad():
        pairs = _masks(network, sparsifier, masks)
        dense = [weight.clone() for weight, _ in pairs]
        for weight, mask in pairs:
            weight.mul_(mask)
    try:
        yield network
    finally:
        with torch.no_grad():
            for (weight, _), before in zip(pairs, dense, strict=True):
                weight.copy_(before)


def sparse_average_state_dict(
    average: object, sparsifier: Sparsifier, *, masks: Masks = "own"
) -> dict[str, torch.Tensor]:
    """A copy of the averaged network's state dict with N:M weights; arguments as for `project_average`.

    Raises:
        ConfigError: A sparse weight is missing in the average or has another shape.
    """
    with sparse_average(average, sparsifier, masks=masks) as network:
        return {
            name: value.detach().clone() if isinstance(value, torch.Tensor) else value
            for name, value in network.state_dict().items()
        }


def _masks(network: nn.Module, sparsifier: Sparsifier, masks: Masks) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each averaged weight (its memory, without a graph) with its mask."""
    if masks not in ("own", "trained"):
        raise ConfigError(f"unknown masks {masks!r}", where="masks", hint='choose "own" or "trained"')
    parameters: Mapping[str, nn.Parameter] = dict(network.named_parameters(remove_duplicate=False))
    trained, found = sparsifier.masks(), []
    for name, (pattern, axis) in sparsifier.imposed().items():
        averaged = parameters.get(name)
        if averaged is None or averaged.shape != trained[name].shape:
            raise ConfigError(
                "the average has no such weight" if averaged is None else f"the average is of {list(averaged.shape)}",
                where=f"layer {name}",
                hint="give the average of the network that sparsify was given",
            )
        weight = averaged.detach()
        mask = nm_mask(weight, pattern, axis) if masks == "own" else trained[name].to(weight.device)
        found.append((weight, mask))
    return found
