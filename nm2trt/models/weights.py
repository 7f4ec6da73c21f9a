"""Weights of a checkpoint into a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from nm2trt.errors import InputError

_LISTED_KEYS = 3


def load_strict(module: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path, *, hint: str) -> None:
    """Load a state dict; every difference in names and shapes is named in one line.

    Raises:
        InputError: There is a difference.
    """
    expected = module.state_dict()
    found = []
    if missing := sorted(expected.keys() - tensors.keys()):
        found.append(f"lacks {_listed(missing)}")
    if unknown := sorted(tensors.keys() - expected.keys()):
        found.append(f"holds {_listed(unknown)}, which the network does not have")
    misshapen = [
        f"{name} is {list(tensors[name].shape)} and not {list(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if misshapen:
        found.append(_listed(misshapen))
    if found:
        raise InputError(f"the checkpoint {'; it '.join(found)}", where=path, hint=hint)
    module.load_state_dict(tensors, strict=True)


def _listed(names: list[str]) -> str:
    rest = len(names) - _LISTED_KEYS
    return ", ".join(names[:_LISTED_KEYS]) + (f" and {rest} more" if rest > 0 else "")
