"""Which number types an engine's layers with weights hold, and whether two engines are of one precision."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nm2trt.evidence.inspector import InspectedLayer
from nm2trt.evidence.weights import has_weights

_BY_WEIGHTS = {
    "int8": "int8",
    "half": "fp16",
    "float": "fp32",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "fp8": "fp8",
    "int4": "int4",
}
_BY_TENSOR = (
    ("fp8", re.compile(r"\bfp8\b", re.IGNORECASE)),
    ("int8", re.compile(r"\bint8\b", re.IGNORECASE)),
    ("bf16", re.compile(r"\b(?:bf16|bfloat16)\b", re.IGNORECASE)),
    ("fp16", re.compile(r"\b(?:fp16|half)\b", re.IGNORECASE)),
    ("fp32", re.compile(r"\b(?:fp32|float)\b", re.IGNORECASE)),
)
_ORDER = ("fp32", "bf16", "fp16", "fp8", "int8", "int4")


def precision_of(layers: Iterable[InspectedLayer]) -> tuple[str, ...]:
    """Types of the layers with weights, widest first; empty where no layer tells."""
    found = set()
    for layer in layers:
        kind = _BY_WEIGHTS.get(layer.weights_type.lower())
        if kind is None and has_weights(layer, (), (), is_listed=False, has_graph=False):
            kind = _tensor_type(layer)
        if kind is not None:
            found.add(kind)
    return tuple(kind for kind in _ORDER if kind in found)


def _tensor_type(layer: InspectedLayer) -> str | None:
    for tensor in layer.inputs[:1]:
        text = f"{tensor.dtype} {tensor.format}"
        return next((kind for kind, pattern in _BY_TENSOR if pattern.search(text)), None)
    return None


def differs(one: str, other: str, *, one_is_asked: bool, other_is_asked: bool) -> bool:
    """Whether two precisions cannot be those of engines that compare.

    What a builder was asked for ("FP32+FP16") is a choice of types, what an engine holds is what it chose: an engine
    fits a choice if its narrowest type is in it. Nothing known is no difference.
    """
    first, second = _types(one), _types(other)
    if not first or not second:
        return False
    if one_is_asked and other_is_asked:
        return first != second
    if one_is_asked or other_is_asked:
        asked, held = (first, second) if one_is_asked else (second, first)
        return _narrowest(held) not in asked
    return _narrowest(first) != _narrowest(second)


def _types(text: str) -> set[str]:
    return {part for part in re.split(r"[^a-z0-9]+", text.lower().partition("(")[0]) if part in _ORDER}


def _narrowest(types: set[str]) -> str:
    return max(types, key=_ORDER.index)
