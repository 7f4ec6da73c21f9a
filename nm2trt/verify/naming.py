"""Which layers a user's globs mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nm2trt.layers import LayerWeight
from nm2trt.selectors import match_any, selectable_names
from nm2trt.verify.verdicts import LayerVerdict


def matches(layer: LayerWeight | LayerVerdict, globs: Sequence[str]) -> bool:
    """Tell whether a glob matches the tensor's name, with or without `.weight`, or one of its nodes' names."""
    return bool(globs) and match_any(names_of(layer), globs)


def names_of(layer: LayerWeight | LayerVerdict) -> tuple[str, ...]:
    """What a glob may match: the tensor and its nodes, with and without `.weight`."""
    return selectable_names(layer.name, *layer.node.split(", ")) if layer.node else selectable_names(layer.name)


def as_named(layer: LayerWeight, globs: Sequence[str]) -> LayerWeight:
    """The layer as a weight, where it is not known to be one but the user names it."""
    if layer.not_checked and layer.reduction_axis is not None and matches(layer, globs):
        return replace(layer, not_checked=False, reason=None)
    return layer
