"""Layers that an earlier `sparsify` made sparse: a later one goes on from their dense weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from nm2trt.training.attachment import attached
from nm2trt.training.masked_weights import MaskedWeights


def take_over(places: Iterable[tuple[nn.Module, nn.Parameter]]) -> list[MaskedWeights]:
    """Make parameters dense again that an earlier sparsifier holds, and take them from it.

    Args:
        places: Parameters, each with the module that owns it.

    Returns:
        The earlier sparsifiers' weights that have no layer left.

    Raises:
        ConfigError: They were written to in a way that cannot be reconciled.
    """
    retired: list[MaskedWeights] = []
    for module, parameter in places:
        for hook in attached(module, parameter):
            loaded = hook.loaded()
            owner = getattr(loaded, "__self__", None)
            if isinstance(owner, MaskedWeights) and hook.layer in owner.layers:
                owner.follow(is_step=False)
                owner.drop([hook.layer], restore=True)
                if not owner.layers:
                    retired.append(owner)
                continue
            # Its sparsifier and optimizer are gone; the residual is not.
            if not hook.layer.snapshot.has_changed(parameter, wait=True):
                with torch.no_grad():
                    hook.layer.restore()
            for key, value in list(module._load_state_dict_post_hooks.items()):  # noqa: SLF001 -- no public way
                if value is hook:
                    del module._load_state_dict_post_hooks[key]  # noqa: SLF001
    return retired
