"""What timings say: summaries, paired ratios with intervals, and the finding in words. Pure functions.

A round times every arm once, in shuffled order, close together in time. What changes slowly (clocks, heat, other
processes) touches all arms of a round alike and leaves in the ratio; what strikes single calls leaves in the medians.
The interval is a percentile bootstrap (Efron, 1979) of the median over rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nm2trt.artifacts import ArmRecord, RatioRecord

Timings = NDArray[np.float64]
Finding = Literal["no-difference", "sparse-faster", "sparse-slower", "too-few-rounds"]

CONFIDENCE = 0.95
RESAMPLES = 2000
MIN_ROUNDS = 25
"""With fewer, a percentile interval of a median covers less than it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Dense against sparse at one batch size."""

    ratio: RatioRecord
    noise: RatioRecord
    noise_floor: float
    finding: Finding


def summarise(name: Literal["dense", "sparse", "sparse-again"], latency_ms_RC: Timings, *, batch: int) -> ArmRecord:
    """Describe the distribution of one arm's calls.

    Args:
        name: The arm.
        latency_ms_RC: Milliseconds of every call, rounds by calls.
        batch: Samples per call.
    """
    calls_ms = latency_ms_RC.ravel()
    mean_ms = float(calls_ms.mean())
    quantiles_ms = np.quantile(calls_ms, np.linspace(0, 1, 101))
    return ArmRecord(
        name=name,
        calls=calls_ms.size,
        median_ms=float(quantiles_ms[50]),
        p90_ms=float(quantiles_ms[90]),
        p99_ms=float(quantiles_ms[99]),
        mean_ms=mean_ms,
        coefficient_of_variation=float(calls_ms.std() / mean_ms),
        throughput_per_s=1000 * batch / mean_ms,
        quantiles_ms=tuple(float(value) for value in quantiles_ms),
    )


def paired_ratio(over_ms_RC: Timings, under_ms_RC: Timings, *, seed: int) -> RatioRecord:
    """Ratio of two arms' latencies with its 95 % interval.

    Args:
        over_ms_RC: Milliseconds of the arm above the line, rounds by calls.
        under_ms_RC: Milliseconds of the arm below it, from the same rounds.
        seed: Of the bootstrap.

    Returns:
        Median over rounds of (median of the round's calls) / (same of the other arm). Logarithms are resampled, so
        exchanging the arms gives the reciprocals. With one round, the interval is unbounded.
    """
    if over_ms_RC.shape[0] != under_ms_RC.shape[0]:
        raise ValueError(f"arms of {over_ms_RC.shape[0]} and {under_ms_RC.shape[0]} rounds cannot be paired")
    logs_R = np.log(np.median(over_ms_RC, axis=1)) - np.log(np.median(under_ms_RC, axis=1))
    value = float(np.exp(np.median(logs_R)))
    if logs_R.size < 2:
        return RatioRecord(value=value, low=0.0, high=float("inf"))
    if np.ptp(logs_R) == 0:
        return RatioRecord(value=value, low=value, high=value)
    interval: Any = stats.bootstrap(
        (logs_R,),
        np.median,
        axis=-1,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=250,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return RatioRecord(value=value, low=float(np.exp(interval.low)), high=float(np.exp(interval.high)))


def compare(dense_ms_RC: Timings, sparse_ms_RC: Timings, again_ms_RC: Timings, *, seed: int) -> Comparison:
    """Judge dense against sparse, with the same network twice as the yardstick.

    A difference counts only where the whole interval lies beyond the farthest that the A/A interval reaches from 1.

    Args:
        dense_ms_RC: Milliseconds of the dense arm, rounds by calls.
        sparse_ms_RC: Milliseconds of the sparse arm, same rounds.
        again_ms_RC: Milliseconds of the sparse arm's second copy, same rounds.
        seed: Of the bootstrap.
    """
    ratio = paired_ratio(dense_ms_RC, sparse_ms_RC, seed=seed)
    noise = paired_ratio(again_ms_RC, sparse_ms_RC, seed=seed + 1)
    floor = max(noise.high, 1 / noise.low if noise.low > 0 else float("inf")) - 1
    floor = max(floor, 0.0)
    finding: Finding = "no-difference"
    if dense_ms_RC.shape[0] < MIN_ROUNDS:
        finding = "too-few-rounds"
    elif ratio.low > 1 + floor:
        finding = "sparse-faster"
    elif ratio.high < 1 / (1 + floor):
        finding = "sparse-slower"
    return Comparison(ratio=ratio, noise=noise, noise_floor=floor, finding=finding)


def sentence(comparison: Comparison, *, rounds: int, sparse_kernels: bool | None) -> str:
    """Say a finding in words; never as a gain of sparsity unless the backend has sparse kernels.

    Args:
        comparison: From `compare`.
        rounds: Rounds that were measured.
        sparse_kernels: Whether the backend has 2:4 kernels; None if unknown.
    """
    noise = f"A/A noise {100 * comparison.noise_floor:.1f} %"
    if comparison.finding == "too-few-rounds":
        return f"undecided: {rounds} rounds are too few for an interval (needs {MIN_ROUNDS}); raise --duration"
    if comparison.finding == "no-difference":
        return f"no difference that this run could show ({noise})"
    ratio = comparison.ratio
    words = f"sparse is {ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}] ({noise})"
    if sparse_kernels is False:
        words += ", which is not from sparsity: no 2:4 kernel exists here"
    elif sparse_kernels is None:
        words += "; whether 2:4 kernels ran was not observed"
    return words


def headline(sentences: dict[int, str], floors: dict[int, float], findings: dict[int, Finding]) -> str:
    """One sentence over all batch sizes (the keys)."""
    if all(finding == "no-difference" for finding in findings.values()):
        at = f"batch {next(iter(findings))}" if len(findings) == 1 else f"any of {len(findings)} batch sizes"
        noise = (
            f"A/A noise {100 * max(floors.values()):.1f} %"
            if len(floors) == 1
            else (f"A/A noise up to {100 * max(floors.values()):.1f} %")
        )
        return f"No difference that this run could show at {at} ({noise})."
    return " ".join(f"Batch {batch}: {words}." for batch, words in sentences.items())
