"""What the ONNX file itself proves of the two facts `legal` and `eligible`."""

from __future__ import annotations

from collections.abc import Mapping

from nm2trt.artifacts import Fact, FactState
from nm2trt.verify import UNREAD_VERDICTS, CheckResult

_LISTED_NAMES = 3


def meant_sparse(checked: CheckResult) -> dict[str, str]:
    """Weight name -> "N:M" of what looks pruned in a file that says nothing of itself.

    Layers that break their pattern are among them, so that the export fails where they do.
    """
    looks = ("conforms", "violates", "wrong-axis")
    return {
        layer.name: layer.pattern for layer in checked.layers if layer.verdict in looks and (layer.density or 0) > 0
    }


def legal_fact(checked: CheckResult, patterns: Mapping[str, str]) -> Fact:
    """Tell whether every layer that was meant to be sparse holds its pattern.

    Args:
        checked: verify's verdict on the ONNX file.
        patterns: Weight name -> "N:M" of what was meant to be sparse.
    """
    if not patterns:
        return Fact(state=FactState.DISPROVED, evidence="dense network: no layer is meant to be sparse")
    conforming = [layer for layer in checked.layers if layer.name in patterns and layer.verdict == "conforms"]
    wanted = ", ".join(sorted(set(patterns.values())))
    if checked.verdict == "pass" and len(conforming) == len(patterns):
        groups = sum(layer.groups for layer in conforming)
        return Fact(
            state=FactState.PROVED,
            evidence=f"{len(conforming)} of {_layers(len(patterns))} meant to be sparse hold {wanted}, "
            f"{groups} groups counted in {checked.source}",
        )
    conform = {layer.name for layer in conforming}
    problems = f"not {_listed(sorted(patterns.keys() - conform))}" if patterns.keys() - conform else ""
    problems = "; ".join(filter(None, (problems, *checked.problems)))
    return Fact(
        state=FactState.DISPROVED,
        evidence=f"{len(conforming)} of {_layers(len(patterns))} meant to be sparse hold {wanted}: {problems}",
    )


def eligible_fact(checked: CheckResult) -> Fact:
    """Tell which layers TensorRT may consider for sparse kernels, and why not the others."""
    layers = [layer for layer in checked.layers if layer.verdict not in UNREAD_VERDICTS]
    eligible = sum(layer.is_eligible for layer in layers)
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        if (against := layer.tensorrt_reason) is not None:
            # The count of illegal groups differs from layer to layer, and would list each by itself.
            reason = against.summary() if against.code == "not-legal" else against.words()
            reasons.setdefault(reason, []).append(layer.name)
    details = "; ".join(f"{reason} ({_listed(names)})" for reason, names in reasons.items())
    return Fact(
        state=FactState.PROVED if eligible else FactState.DISPROVED,
        evidence=f"{eligible} of {_layers(len(layers))}" + (f"; not: {details}" if details else ""),
    )


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _listed(names: list[str]) -> str:
    rest = len(names) - _LISTED_NAMES
    return ", ".join(names[:_LISTED_NAMES]) + (f" and {rest} more" if rest > 0 else "")
