"""A model's state dict with dense weights in place of the sparse ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.training.layer_state import SparseLayer
from nm2trt.training.shards import as_sharded


def dense_weight(layer: SparseLayer) -> torch.Tensor:
    """W = W~ + R, copied; a DTensor with the parameter's placements where that is one."""
    return as_sharded(layer.dense_weight(), layer.parameter)


@torch.no_grad()
def dense_state_dict(model: nn.Module, layers: Sequence[SparseLayer]) -> dict[str, Any]:
    """The state dict of a model with W = W~ + R for every sparse weight, under each of its names.

    Args:
        model: What `sparsify` was given, or a wrapper around it or inside it; its own names are kept.
        layers: The sparse layers.

    Raises:
        ConfigError: The model does not hold a sparse weight, so it is another one.
    """
    state = dict(model.state_dict(keep_vars=True))
    left = {id(layer.parameter): layer for layer in layers}
    dense: dict[int, torch.Tensor] = {}
    for name, value in state.items():
        layer = left.get(id(value))
        if layer is not None:
            state[name] = dense.setdefault(id(value), dense_weight(layer))
        elif isinstance(value, torch.Tensor):
            state[name] = value.detach()
    if missing := [layer.name for key, layer in left.items() if key not in dense]:
        raise ConfigError(
            f"this model's state dict does not hold the sparse weight of {', '.join(missing[:3])}",
            hint="give the model that sparsify was given",
        )
    return state
