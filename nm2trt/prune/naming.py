"""What a checkpoint's names say about the classifiers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nm2trt.layers import LayerWeight

_WORDS = re.compile(
    r"^(fc|classifiers?|heads?|lm_head|logits|scores?|last_linear|output_layer|output_projection|qa_outputs|embed_out"
    r"|proj_out|predictions|linear_head|auxlogits|class_(embed|labels_classifier)|\w+_head|head_\w+|\w*classifier)$",
    re.I,
)
_CONV_WORDS = re.compile(r"^(classifiers?|heads?|logits|scores?|predictions|class_head|cls_head)$", re.I)
"""For convolutions, which other heads are made of, too: conv_head is no classifier."""
_WRAPPERS = re.compile(
    r"^(module|model\w*|net\w*|backbone|encoder|_orig_mod|ema\w*|state_dict\w*|\w+_state|student|teacher|generator)$"
)


def classifiers_of(layers: Sequence[LayerWeight]) -> frozenset[str]:
    """Name the linear weights that make the logits, by the names that the common libraries give them.

    `fc`, `classifier.6`, `heads.head`, `lm_head` and their like at the top of the module tree. Of several under one
    name those whose outputs no other one reads: the last of a chain, and each of parallel heads. In a network that is
    all one `nn.Sequential`, whose names are numbers, it is the last layer. A network whose names say nothing has none.
    """
    linear = [layer for layer in layers if layer.op in ("linear", "conv") and layer.reduction_axis is not None]
    prunable = [layer for layer in layers if layer.reduction_axis is not None and not layer.not_checked]
    if len(prunable) < 2:
        return frozenset()
    groups: dict[str, list[LayerWeight]] = {}
    tops = {parts[0] for layer in linear if (parts := _parts(layer.name))}
    for layer in linear:
        parts = _parts(layer.name)
        # Beside an fc2, fc is the first of several layers and no classifier.
        numbered = bool(parts) and any(re.fullmatch(rf"{re.escape(parts[0])}_?\d+", top) for top in tops)
        words = _WORDS if layer.op == "linear" else _CONV_WORDS
        if parts and words.match(parts[0]) and not numbered:
            groups.setdefault(".".join((*_before(layer.name), parts[0])), []).append(layer)
    found = {layer.name for group in groups.values() for layer in _ends(group)}
    if not found and all(layer.name.split(".")[0].isdigit() for layer in prunable):
        last = max(prunable, key=lambda layer: _natural(layer.name))
        found = {last.name} if last.op == "linear" and last.name.endswith(".weight") else set()
    return frozenset(found)


def classifier_reason(layer: LayerWeight, classifiers: frozenset[str]) -> str:
    """Why this layer stays dense unless it is named; empty for all but the classifiers."""
    return "the classifier, by its name" if layer.name in classifiers else ""


def _ends(group: list[LayerWeight]) -> list[LayerWeight]:
    """Those whose outputs no later layer of the group takes as inputs."""
    ordered = sorted(group, key=lambda layer: _natural(layer.name))
    return [
        layer
        for index, layer in enumerate(ordered)
        if not any(_inputs(later) == _outputs(layer) and _chained(layer, later) for later in ordered[index + 1 :])
        and not any(_is_hidden_before(layer, other) for other in group)
    ]


def _is_hidden_before(layer: LayerWeight, other: LayerWeight) -> bool:
    """A layer that keeps its width, beside one that reads that width and makes another."""
    return _inputs(layer) == _outputs(layer) == _inputs(other) != _outputs(other)


def _chained(layer: LayerWeight, later: LayerWeight) -> bool:
    """Layers of equal names but for numbers, or with a hidden width that is read by the next, make a chain."""
    same_kind = re.sub(r"\d+", "", layer.name) == re.sub(r"\d+", "", later.name)
    return same_kind or _outputs(layer) == _inputs(layer) or _outputs(layer) == _inputs(later)


def _inputs(layer: LayerWeight) -> int:
    assert layer.reduction_axis is not None
    return layer.shape[layer.reduction_axis]


def _outputs(layer: LayerWeight) -> int:
    assert layer.reduction_axis is not None
    return layer.shape[1 - layer.reduction_axis]


def _parts(name: str) -> list[str]:
    parts = name.split(".")
    while parts and _WRAPPERS.match(parts[0]):
        parts = parts[1:]
    return parts


def _before(name: str) -> list[str]:
    parts = name.split(".")
    return parts[: len(parts) - len(_parts(name))]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
