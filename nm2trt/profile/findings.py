"""Findings in words. A gain is never put down to sparsity unless a sparse kernel was seen to run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nm2trt.artifacts.ratio import RatioRecord
from nm2trt.artifacts.report import Finding
from nm2trt.profile.statistics import MIN_ROUNDS, Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """What is known of the sparse variant's kernels."""

    exist: bool | None
    """Whether the backend has 2:4 kernels at all; None when that could not be told."""
    chosen: int | None = None
    """Layers in which one ran; None when that was not observed."""
    weighted: int = 0
    """Layers with weights, of which `chosen` is counted."""
    noun: str = "weighted layers"


def sentence(comparison: Comparison, *, rounds: int, kernels: Kernels) -> str:
    """Say a finding in words.

    Args:
        comparison: From `statistics.classify_ratio`.
        rounds: Rounds that were measured.
        kernels: What is known of the sparse variant's kernels.
    """
    noise = f"A/A noise {100 * comparison.noise_floor:.1f} %"
    if comparison.finding == "too-few-rounds":
        return f"undecided: {rounds} rounds are too few for an interval (needs {MIN_ROUNDS}); raise --duration"
    if comparison.finding == "no-difference":
        return f"no difference that this run could show ({noise})"
    return f"sparse is {ratio_words(comparison.ratio)} ({noise}){kernel_words(kernels)}"


def ratio_words(ratio: RatioRecord) -> str:
    """1.13x [1.11, 1.15]; 1.13x alone where nothing bounds it."""
    if not math.isfinite(ratio.high):
        return f"{ratio.value:.2f}x"
    return f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def kernel_words(kernels: Kernels) -> str:
    """What may be said after a ratio, with the comma or semicolon before it."""
    if kernels.exist is False:
        return ", which is not from sparsity: no 2:4 kernel exists here"
    if kernels.chosen is None:
        return "; whether 2:4 kernels ran was not observed"
    if kernels.chosen == 0:
        return f", which is not from sparsity: none of {kernels.weighted} {kernels.noun} runs a sparse kernel"
    return f", {kernels.chosen} of {kernels.weighted} {kernels.noun} run sparse kernels"


def headline(sentences: Mapping[int, str], floors: Mapping[int, float], findings: Mapping[int, Finding]) -> str:
    """One sentence over all batch sizes (the keys)."""
    if all(finding == "no-difference" for finding in findings.values()):
        at = f"batch {next(iter(findings))}" if len(findings) == 1 else f"any of {len(findings)} batch sizes"
        up_to = "" if len(floors) == 1 else "up to "
        return f"No difference that this run could show at {at} (A/A noise {up_to}{100 * max(floors.values()):.1f} %)."
    return " ".join(f"Batch {batch}: {words}." for batch, words in sentences.items())
