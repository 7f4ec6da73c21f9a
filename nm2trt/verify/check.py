"""Check a stream of layers against N:M patterns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from nm2trt.layers import LayerWeight
from nm2trt.pattern import TENSORRT_PATTERN, NMPattern
from nm2trt.reasons import Reason, words_of
from nm2trt.selectors import last_match
from nm2trt.verify.axes import other_grouping
from nm2trt.verify.counting import GroupCount
from nm2trt.verify.eligibility import reason_against, structural_reason
from nm2trt.verify.hints import BLIND, sparse_kernel_hint
from nm2trt.verify.naming import as_named, matches, names_of
from nm2trt.verify.origins import KeptShare, origin_notes
from nm2trt.verify.strongest import strongest_pattern
from nm2trt.verify.values import Values
from nm2trt.verify.verdicts import (
    BAD_VERDICTS,
    ELIGIBLE,
    UNREAD_VERDICTS,
    CheckResult,
    LayerVerdict,
    Totals,
    Verdict,
    Violation,
)

Auto = Literal["auto"]

_SPARSE_DENSITY = 0.75
"""From here down a layer was meant to be sparse, so that a group that breaks the pattern is a mistake."""

_BAD_WORDS: dict[Verdict, str] = {
    "violates": "{} meant to be sparse with groups that break the pattern",
    "wrong-axis": "{} with the pattern along the wrong axis",
    "zero-point": "{} with a zero point that is not 0",
}

_CHECKPOINT_NOTE = (
    "a checkpoint's dtype is not the engine's: the tensorrt column checks shape and pattern only "
    "(sparse kernels need FP16 or INT8)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the user and the file itself ask of the layers.

    Globs are matched against tensor names and, in graphs, node names; in `layer_patterns` the last match wins.
    """

    pattern: NMPattern | Auto = TENSORRT_PATTERN
    layer_patterns: Mapping[str, NMPattern] = field(default_factory=dict)
    exclude: Sequence[str] = ()
    require: Sequence[str] = ()
    strict: bool = False
    claims: Mapping[str, NMPattern] | None = None
    """Tensor names that the file itself calls sparse. They must conform; all others are dense on purpose."""


def check_layers(
    layers: Iterable[LayerWeight],
    pattern: NMPattern | Auto = TENSORRT_PATTERN,
    *,
    layer_patterns: Mapping[str, NMPattern] | None = None,
    exclude: Sequence[str] = (),
    require: Sequence[str] = (),
    strict: bool = False,
    source: str = "",
    kind: Literal["checkpoint", "onnx"] = "checkpoint",
    claims: Mapping[str, NMPattern] | None = None,
    method: str | None = None,
    left_out: Mapping[str, int] | None = None,
) -> CheckResult:
    """Check every layer; one tensor is in memory at a time.

    Args:
        layers: From `open_layers`.
        pattern: For every layer that nothing else names a pattern for; "auto": the strongest that each holds, and
            2:4 where it holds none.
        layer_patterns: Glob on tensor or node names -> pattern; the last match wins.
        exclude: Globs of layers that are not checked.
        require: Globs of layers that must conform; each must match a prunable layer.
        strict: Every prunable layer must conform, and there is no tensor that may be a weight but was not checked.
        source: Name of the file, for the document.
        kind: Whether the operators are known (onnx) or guessed (checkpoint).
        claims: Tensor name -> pattern, from the file's own metadata: these must conform, and only these are
            expected to.
        method: Training method, from the file's own metadata.
        left_out: Parts of the file that are no network -> tensors in them.

    Raises:
        InputError: A layer's values cannot be read.
    """
    rules = Rules(
        pattern=pattern,
        layer_patterns=layer_patterns or {},
        exclude=exclude,
        require=require,
        strict=strict,
        claims=claims,
    )
    verdicts: list[LayerVerdict] = []
    excluded: list[str] = []
    weights = zeros = 0
    kept = KeptShare()
    for layer in layers:
        if matches(layer, rules.exclude):
            excluded.append(layer.name)
            continue
        verdict, count = check_layer(layer, rules)
        kept.look(layer, verdict)
        verdicts.append(verdict)
        if count is not None:
            size = int(np.prod(layer.shape, dtype=np.int64))
            weights += size
            zeros += size - count.nonzeros
    problems = _problems(verdicts, excluded, rules)
    return CheckResult(
        source=source,
        kind=kind,
        pattern=str(pattern),
        method=method,
        strict=strict,
        verdict="fail" if problems else "pass",
        problems=problems,
        notes=_notes(verdicts, excluded, rules, kind)
        + left_out_notes(left_out or {})
        + origin_notes(verdicts, kept, kind, source),
        layers=verdicts,
        excluded=excluded,
        totals=_totals(verdicts, weights, zeros),
    )


def check_layer(layer: LayerWeight, rules: Rules) -> tuple[LayerVerdict, GroupCount | None]:
    """Check one layer; the count is None where its values were not read."""
    layer = as_named(layer, tuple(rules.layer_patterns))
    wanted = _pattern_of(layer, rules)
    pattern = TENSORRT_PATTERN if wanted == "auto" else wanted
    axis = layer.reduction_axis
    if layer.not_checked:
        return _unread(layer, pattern, "not-checked", layer.reason or Reason("no-axis")), None
    if axis is None or layer.reason is not None:
        return _unread(layer, pattern, "not-prunable", layer.reason or Reason("no-axis")), None
    if 0 in layer.shape:
        return _unread(layer, pattern, "not-prunable", Reason("empty")), None
    size = reduction_size(layer)
    values = Values(layer)
    if wanted == "auto":
        pattern = strongest_pattern(values, axis, size) or pattern
    if size % pattern.m:
        return _unread(
            layer, pattern, "indivisible", Reason("indivisible", f"{size} along axis {axis}", str(pattern.m))
        ), None
    count = values.count(pattern, axis)
    verdict, note = _verdict(layer, values, count, pattern, rules)
    reason = Reason("on-purpose") if verdict == "dense" and _is_dense_on_purpose(layer, rules) else None
    nonfinite = f"{count.nonfinite} NaN or infinite weights" if count.nonfinite else ""
    note = "; ".join(filter(None, (note or words_of(reason), words_of(layer.reading), nonfinite)))
    return (
        _layer_verdict(
            layer,
            pattern,
            verdict,
            note,
            groups=count.groups,
            violations=count.violations,
            first_violation=_first_violation(count),
            density=count.nonzeros / (count.groups * pattern.m),
            nonfinite=count.nonfinite,
            reason=reason,
            against=_reason_against(layer, values, count, pattern),
        ),
        count,
    )


def _verdict(
    layer: LayerWeight, values: Values, count: GroupCount, pattern: NMPattern, rules: Rules
) -> tuple[Verdict, str]:
    claimed = _is_claimed(layer, rules)
    if layer.zero_point:
        return "zero-point", "quantized with a zero point that is not 0: stored zeros are not zeros"
    if not count.violations:
        return "conforms", ""
    if _is_dense_on_purpose(layer, rules):
        return "dense", ""
    meant = (
        claimed or count.nonzeros <= _SPARSE_DENSITY * count.groups * pattern.m or 2 * count.violations < count.groups
    )
    if not meant:
        return "dense", ""
    assert layer.reduction_axis is not None
    other = other_grouping(values, pattern, layer.reduction_axis, layer.op)
    if other:
        return "wrong-axis", f"{pattern} holds {other}, but the hardware groups along axis {layer.reduction_axis}"
    return "violates", "the file says it is sparse" if claimed else ""


def _is_claimed(layer: LayerWeight, rules: Rules) -> bool:
    return rules.claims is not None and layer.name in rules.claims


def _is_dense_on_purpose(layer: LayerWeight, rules: Rules) -> bool:
    """Whether the file names its sparse layers, and this is none of them."""
    return (
        rules.claims is not None and not _is_claimed(layer, rules) and not matches(layer, tuple(rules.layer_patterns))
    )


def _reason_against(layer: LayerWeight, values: Values, count: GroupCount, pattern: NMPattern) -> Reason | None:
    if reason := structural_reason(layer):
        return reason
    assert layer.reduction_axis is not None
    if pattern.tensorrt_legal and not count.violations:
        return reason_against(layer, illegal_groups=0, groups=count.groups)
    legal = count if pattern == TENSORRT_PATTERN else values.count(TENSORRT_PATTERN, layer.reduction_axis)
    return reason_against(layer, illegal_groups=legal.violations, groups=legal.groups)


def _first_violation(count: GroupCount) -> Violation | None:
    return None if count.first is None else Violation(index=count.first, values=count.first_values)


def reduction_size(layer: LayerWeight) -> int:
    """Weights along the reduction axis that belong together; M has to divide it."""
    assert layer.reduction_axis is not None
    size = layer.shape[layer.reduction_axis]
    # [C_in, C_out / groups, ...]: a group of weights must not reach from one convolution group into the next.
    return size // layer.groups if layer.op == "conv-transpose" else size


def parse_pattern(text: str) -> NMPattern | Auto:
    """Read N:M or `auto`.

    Raises:
        ConfigError: As `NMPattern.parse`.
    """
    return "auto" if text.strip() == "auto" else NMPattern.parse(text)


def _pattern_of(layer: LayerWeight, rules: Rules) -> NMPattern | Auto:
    if (glob := last_match(names_of(layer), rules.layer_patterns)) is not None:
        return rules.layer_patterns[glob]
    if rules.claims is not None and layer.name in rules.claims:
        return rules.claims[layer.name]
    return rules.pattern


def _unread(layer: LayerWeight, pattern: NMPattern, verdict: Verdict, reason: Reason) -> LayerVerdict:
    against = structural_reason(layer) or Reason("not-checked", reason.words())
    return _layer_verdict(layer, pattern, verdict, reason.words(), reason=reason, against=against)


def _layer_verdict(
    layer: LayerWeight,
    pattern: NMPattern,
    verdict: Verdict,
    note: str,
    *,
    reason: Reason | None,
    against: Reason | None,
    groups: int = 0,
    violations: int = 0,
    first_violation: Violation | None = None,
    density: float | None = None,
    nonfinite: int = 0,
) -> LayerVerdict:
    return LayerVerdict(
        name=layer.name,
        node=layer.node,
        op=layer.op,
        shape=layer.shape,
        dtype=layer.dtype,
        axis=layer.reduction_axis,
        channel_groups=layer.groups,
        pattern=str(pattern),
        verdict=verdict,
        groups=groups,
        violations=violations,
        first_violation=first_violation,
        density=density,
        nonfinite=nonfinite,
        tensorrt=words_of(against) or ELIGIBLE,
        hint=sparse_kernel_hint(layer) if against is None else "",
        note=note,
        reason=reason,
        tensorrt_reason=against,
        reading=layer.reading if verdict not in UNREAD_VERDICTS else None,
        packed=layer.packed,
    )


def _problems(verdicts: list[LayerVerdict], excluded: list[str], rules: Rules) -> list[str]:
    bad = Counter(layer.verdict for layer in verdicts if layer.verdict in BAD_VERDICTS)
    problems = [_BAD_WORDS[verdict].format(_layers(count)) for verdict, count in bad.items()]
    prunable = [layer for layer in verdicts if layer.verdict not in UNREAD_VERDICTS]
    unchecked = [layer for layer in verdicts if layer.verdict == "not-checked"]
    for glob in rules.require:
        matched = [layer for layer in prunable if matches(layer, (glob,))]
        if not matched:
            problems.append(f"--require {glob} matches no prunable layer")
        problems += [
            f"required layer {layer.name} is {layer.verdict}"
            for layer in matched
            if layer.verdict not in ("conforms", *BAD_VERDICTS)
        ]
    if rules.claims is not None:
        seen = {layer.name: layer for layer in verdicts}
        for name in sorted(set(rules.claims) - set(excluded)):
            if name not in seen:
                problems.append(f"{name} is sparse by the file's metadata, but is not in the file")
            elif seen[name].verdict not in ("conforms", *BAD_VERDICTS):
                problems.append(f"{name} is sparse by the file's metadata, but is {seen[name].verdict}")
    if rules.strict:
        loose = [layer for layer in prunable if layer.verdict not in ("conforms", *BAD_VERDICTS)]
        if loose:
            problems.append(f"--strict: {_layers(len(loose))} that could conform did not, first {loose[0].name}")
        if unchecked:
            problems.append(f"--strict: {_unchecked(unchecked)}; leave out with --exclude what is no weight")
    if not any(layer.verdict == "conforms" for layer in verdicts):
        problems.append("no layer conforms" if prunable else "there is no layer to judge")
        if not prunable and unchecked and not rules.strict:
            problems.append(_unchecked(unchecked))
    return problems


def _unchecked(layers: Sequence[LayerVerdict]) -> str:
    return f"{_tensors(len(layers))} not checked, first {layers[0].name} ({_summary(layers[0])})"


def _summary(layer: LayerVerdict) -> str:
    return layer.reason.summary() if layer.reason else layer.note


def left_out_notes(left_out: Mapping[str, int]) -> list[str]:
    """Say which parts of a trainer's checkpoint are no network."""
    return [
        f"{_tensors(count)} under {part!r}: the trainer's and not the network's, left out"
        for part, count in left_out.items()
    ]


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _notes(verdicts: list[LayerVerdict], excluded: list[str], rules: Rules, kind: str) -> list[str]:
    notes = [_CHECKPOINT_NOTE] if kind == "checkpoint" else []
    notes += [
        f"--layer {glob} matches no layer"
        for glob in rules.layer_patterns
        if not any(matches(layer, (glob,)) for layer in verdicts)
    ]
    if any(layer.hint for layer in verdicts):
        notes.append(BLIND)
    if rules.exclude and not excluded:
        notes.append("--exclude matches no layer")
    if rules.claims is not None:
        sparse = _layers(len(rules.claims)) if rules.claims else "no layer"
        notes.append(f"the file's own metadata calls {sparse} sparse; the others are dense on purpose")
    return notes


def _totals(verdicts: list[LayerVerdict], weights: int, zeros: int) -> Totals:
    counts = Counter(layer.verdict for layer in verdicts)
    return Totals(
        layers=len(verdicts),
        prunable=len(verdicts) - counts["not-prunable"] - counts["not-checked"],
        verdicts=dict(sorted(counts.items())),
        eligible=sum(layer.is_eligible for layer in verdicts),
        weights=weights,
        zeros=zeros,
        weights_in_conforming=sum(
            int(np.prod(layer.shape, dtype=np.int64)) for layer in verdicts if layer.verdict == "conforms"
        ),
        groups=sum(layer.groups for layer in verdicts),
        violations=sum(layer.violations for layer in verdicts),
        nonfinite=sum(layer.nonfinite for layer in verdicts),
        not_checked=counts["not-checked"],
        weights_not_checked=sum(math.prod(layer.shape) for layer in verdicts if layer.verdict == "not-checked"),
    )
