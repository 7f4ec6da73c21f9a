"""Which weights are pruned, to which pattern, and why the others stay dense.

The defaults are those of training: every matrix product whose reduction axis M divides, but no depthwise or
transposed convolution, no embedding, and not the classifier unless it is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import ConfigError, InputError
from nm2trt.layers import LayerWeight
from nm2trt.pattern import NMPattern
from nm2trt.prune.fixed_values import fixed_reason
from nm2trt.prune.magnitude import PRUNABLE_DTYPES, group_positions
from nm2trt.prune.writers.stored import StoredWeight
from nm2trt.reasons import Reason
from nm2trt.selectors import check_globs, last_match
from nm2trt.verify import as_named, matches, names_of, reduction_size

_MULTIPLE_MEND = "choose another pattern for it, or leave it out of --layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asks for. Globs match tensor names, with or without `.weight`, and node names."""

    pattern: NMPattern
    layer_patterns: Mapping[str, NMPattern] = field(default_factory=dict)
    """The last match wins."""
    exclude: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One use of one weight."""

    weight: StoredWeight
    pattern: NMPattern | None
    """None: stays dense."""
    reason: str
    """In words."""
    why: Reason | None = None
    """The same as data, where the layer's reader gave it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredWeights:
    """What a method with data would like to keep of every weight."""

    method: Literal["wanda", "obs"]
    scores: Mapping[str, NDArray[Any]]
    """Tensor name -> scores in the stored weight's shape, not negative, of sum 1; dense-staying ones are left out."""


ScoreWeights = Callable[[Path, Sequence[Decision]], ScoredWeights]
"""Called with a dense copy of the file and what was chosen."""


def decide(weights: Sequence[StoredWeight], request: Request, where: object) -> list[Decision]:
    """Decide for every weight, in the order of the file.

    Args:
        weights: Of `open_stored`.
        request: What the user asks for.
        where: The file, for messages.

    Raises:
        ConfigError: A glob matches no layer, or `--layer` names one by its full name that its M does not divide.
        InputError: A weight that would be pruned has a zero point that is not 0.
    """
    known = [names_of(weight.layer) for weight in weights]
    check_globs(known, (*request.layer_patterns, *request.exclude), where=where)
    decisions = [_decide(weight, request, where) for weight in weights]
    by_key: dict[object, list[int]] = {}
    for index, decision in enumerate(decisions):
        by_key.setdefault(decision.weight.key, []).append(index)
    for indices in by_key.values():
        shared = [decisions[index] for index in indices]
        reason = _conflict(shared) if len(shared) > 1 else ""
        for index in indices if reason else ():
            decisions[index] = Decision(weight=decisions[index].weight, pattern=None, reason=reason)
    return decisions


def _decide(weight: StoredWeight, request: Request, where: object) -> Decision:
    weight = replace(weight, layer=as_named(weight.layer, tuple(request.layer_patterns)))
    layer = weight.layer
    named = last_match(names_of(layer), request.layer_patterns)
    wanted = request.layer_patterns[named] if named is not None else request.pattern

    def dense(reason: str, why: Reason | None = None) -> Decision:
        return Decision(weight=weight, pattern=None, reason=reason, why=why)

    excluded = next((glob for glob in request.exclude if matches(layer, (glob,))), None)
    if excluded is not None:
        return dense(f"excluded by {excluded!r}")
    if layer.not_checked:
        return dense(layer.why_not, layer.reason)
    if layer.reduction_axis is None or layer.reason is not None or 0 in layer.shape:
        why = layer.reason or Reason("empty" if 0 in layer.shape else "no-axis")
        return dense(why.words(), why)
    size = reduction_size(layer)
    if size % wanted.m:
        reason = f"reduction axis of {size} is {'shorter than' if size < wanted.m else 'no multiple of'} M = {wanted.m}"
        # A glob such as "*" must not fail at the stem; only a full name insists.
        if named in (layer.name, layer.node, layer.name.removesuffix(".weight")):
            raise ConfigError(reason, where=f"layer {layer.name}", hint=_MULTIPLE_MEND)
        return dense(reason)
    if layer.dtype not in PRUNABLE_DTYPES:
        return dense(f"values of type {layer.dtype} are not pruned")
    if weight.refused:
        return dense(weight.refused)
    if named is None and (reason := _dense_by_default(weight)):
        return dense(f"{reason}; name it with --layer to prune it")
    if layer.zero_point:
        raise InputError(
            f"weight {layer.name!r} is quantized with a zero point that is not 0, so zeroing it would not make zeros",
            where=where,
            hint=f"quantize it symmetrically, or leave it dense with --exclude {layer.name!r}",
        )
    if named is None and (reason := fixed_reason(weight.values(weight.read()), layer.reduction_axis)):
        return dense(f"{reason}; name it with --layer to prune it")
    return Decision(weight=weight, pattern=wanted, reason=f"reduction axis of {size} divides by {wanted.m}")


def _dense_by_default(weight: StoredWeight) -> str:
    if weight.layer.op == "conv-transpose":
        return "transposed convolutions never run sparse in TensorRT"
    layer = weight.layer
    if layer.reduction_axis is not None and len(layer.shape) > 1 and _outputs(layer) == 1:
        return "one output: a sparse kernel has nothing to gain"
    return weight.dense_unless_named


def _outputs(layer: LayerWeight) -> int:
    """Outputs of a layer: output channels of a convolution, columns of a product."""
    if layer.op == "conv":
        return layer.shape[0]
    assert layer.reduction_axis is not None
    return math.prod(layer.shape) // layer.shape[layer.reduction_axis]


def _conflict(shared: Sequence[Decision]) -> str:
    """Why a tensor that several operators read stays dense; empty where all of them agree."""
    names = ", ".join(decision.weight.layer.node or decision.weight.layer.name for decision in shared)
    loose = next((decision for decision in shared if decision.pattern is None), None)
    if loose is not None:
        return f"shared by {names}: {loose.reason}"
    first, *others = shared
    assert first.pattern is not None
    groups = _groups(first.weight, first.pattern)
    for other in others:
        if other.pattern != first.pattern:
            return f"shared by {names}, which get different patterns"
        if not np.array_equal(_groups(other.weight, first.pattern), groups):
            return f"shared by {names}, which reduce along different axes"
    return ""


def _groups(weight: StoredWeight, pattern: NMPattern) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
    assert weight.layer.reduction_axis is not None
    stored_shape = weight.read().shape
    return group_positions(stored_shape, weight.layout, weight.layer.reduction_axis, pattern.m)
