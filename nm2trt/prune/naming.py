"""What a checkpoint's names say about the classifier."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nm2trt.layers import LayerWeight

_WORDS = frozenset(("fc", "classifier", "head", "heads", "lm_head", "logits", "score"))
_WRAPPERS = frozenset(("module", "model", "net", "backbone", "encoder", "_orig_mod"))


def classifier_of(layers: Sequence[LayerWeight]) -> str | None:
    """Name the linear weight that makes the logits, by the names that the common libraries give it.

    `fc`, `classifier.6`, `heads.head`, `lm_head` and their like at the top of the module tree; of several the
    last. A checkpoint has no order that could be trusted, so a network whose names say nothing has none.
    """
    named = [layer.name for layer in layers if layer.op == "linear" and _at_the_top(layer.name)]
    prunable = [layer for layer in layers if layer.reduction_axis is not None]
    return max(named, key=_natural) if named and len(prunable) > 1 else None


def classifier_reason(layer: LayerWeight, classifier: str | None) -> str:
    """Why this layer stays dense unless it is named; empty for all but the classifier."""
    return "the classifier, by its name" if layer.name == classifier else ""


def _at_the_top(name: str) -> bool:
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return bool(parts) and parts[0] in _WORDS


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
