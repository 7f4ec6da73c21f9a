"""What timings say: summaries, paired ratios with intervals, and the finding in words. Pure functions.

A round times every variant once, in shuffled order, close together in time. What changes slowly (clocks, heat, other
processes) touches all variants of a round alike and leaves in the ratio; what strikes single calls leaves in the
medians. The interval is a percentile bootstrap (Efron, 1979) of the median over rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.artifacts import RatioRecord, VariantRecord
from nm2trt.artifacts.report import Finding, SpreadRecord, VariantName

Timings = NDArray[np.float64]

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


def summarize(name: VariantName, calls_ms: Timings, *, batch: int) -> VariantRecord:
    """Describe the distribution of one variant's calls.

    Args:
        name: The variant.
        calls_ms: Milliseconds of every call, in any shape.
        batch: Samples per call.
    """
    calls_ms = calls_ms.ravel()
    mean_ms = float(calls_ms.mean())
    quantiles_ms = np.quantile(calls_ms, np.linspace(0, 1, 101))
    return VariantRecord(
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


def spread(calls_ms: Timings) -> SpreadRecord:
    """Describe calls by three quantiles."""
    median_ms, p90_ms, p99_ms = np.quantile(calls_ms, [0.5, 0.9, 0.99])
    return SpreadRecord(calls=calls_ms.size, median_ms=float(median_ms), p90_ms=float(p90_ms), p99_ms=float(p99_ms))


def paired_ratio(over_ms_RC: Timings, under_ms_RC: Timings, *, seed: int) -> RatioRecord:
    """Ratio of two variants' latencies with its 95 % interval.

    Args:
        over_ms_RC: Milliseconds of the variant above the line, rounds by calls.
        under_ms_RC: Milliseconds of the variant below it, from the same rounds.
        seed: Of the bootstrap.

    Returns:
        Median over rounds of (median of the round's calls) / (same of the other variant). Logarithms are resampled, so
        exchanging the variants gives the reciprocals. With one round, the interval is unbounded.
    """
    if over_ms_RC.shape[0] != under_ms_RC.shape[0]:
        raise ValueError(f"variants of {over_ms_RC.shape[0]} and {under_ms_RC.shape[0]} rounds cannot be paired")
    logs_R = np.log(np.median(over_ms_RC, axis=1)) - np.log(np.median(under_ms_RC, axis=1))
    value = float(np.exp(np.median(logs_R)))
    if logs_R.size < 2:
        return RatioRecord(value=value, low=0.0, high=float("inf"))
    if np.ptp(logs_R) == 0:
        return RatioRecord(value=value, low=value, high=value)
    # Half of the memory that reading others' files takes would be this import.
    from scipy import stats

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
    """Check dense against sparse, with the same network twice as the yardstick.

    A difference counts only where the whole interval lies beyond the farthest that the A/A interval reaches from 1.

    Args:
        dense_ms_RC: Milliseconds of the dense variant, rounds by calls.
        sparse_ms_RC: Milliseconds of the sparse variant, same rounds.
        again_ms_RC: Milliseconds of the sparse variant's second copy, same rounds.
        seed: Of the bootstrap.
    """
    ratio = paired_ratio(dense_ms_RC, sparse_ms_RC, seed=seed)
    noise = paired_ratio(again_ms_RC, sparse_ms_RC, seed=seed + 1)
    return classify_ratio(ratio, noise, rounds=dense_ms_RC.shape[0])


def classify_ratio(ratio: RatioRecord, noise: RatioRecord, *, rounds: int) -> Comparison:
    """Hold a ratio against the noise of the same network twice."""
    floor = max(noise.high, 1 / noise.low if noise.low > 0 else float("inf")) - 1
    floor = max(floor, 0.0)
    return Comparison(ratio=ratio, noise=noise, noise_floor=floor, finding=finding_of(ratio, floor, rounds=rounds))


def finding_of(ratio: RatioRecord, floor: float, *, rounds: int) -> Finding:
    """Say which side of 1 a whole interval lies on, beyond the noise floor."""
    if rounds < MIN_ROUNDS:
        return "too-few-rounds"
    if ratio.low > 1 + floor:
        return "sparse-faster"
    if ratio.high < 1 / (1 + floor):
        return "sparse-slower"
    return "no-difference"


def over_builds(ratios: Sequence[RatioRecord]) -> RatioRecord:
    """Join the ratios of several builds of the same variants.

    The autotuner picks other kernels in every build, so builds differ by more than rounds do. A handful of them makes
    no distribution: the interval reaches from the lowest end of any to the highest, and the value is their median.
    """
    return RatioRecord(
        value=float(np.median([ratio.value for ratio in ratios])),
        low=min(ratio.low for ratio in ratios),
        high=max(ratio.high for ratio in ratios),
    )


def median_ratio(ratios: Sequence[float], *, seed: int) -> RatioRecord:
    """Median of ratios of different things (layers), with a bootstrap interval over them."""
    logs = np.log(np.asarray(ratios, dtype=np.float64))
    return paired_ratio(np.exp(logs)[:, None], np.ones((logs.size, 1)), seed=seed)


def unpaired_ratio(over_ms: Timings, under_ms: Timings, *, seed: int) -> RatioRecord:
    """Ratio of the medians of two runs that were timed one after the other, each call in its order.

    Neighboring calls resemble each other, so blocks of a fiftieth of the run are resampled (moving block bootstrap,
    Kuensch, 1989). The interval knows nothing of what changed between the two runs.
    """
    rng = np.random.default_rng(seed)
    draws = [_block_medians(calls_ms, rng) for calls_ms in (over_ms, under_ms)]
    logs = np.log(draws[0]) - np.log(draws[1])
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.exp(np.percentile(logs, [tail, 100 - tail]))
    return RatioRecord(value=float(np.median(over_ms) / np.median(under_ms)), low=float(low), high=float(high))


def _block_medians(calls_ms: Timings, rng: np.random.Generator) -> Timings:
    size = max(1, calls_ms.size // 50)
    count = -(-calls_ms.size // size)
    starts_BN = rng.integers(0, calls_ms.size - size + 1, (RESAMPLES // 4, count))
    picked_BNC = calls_ms[starts_BN[..., None] + np.arange(size)]
    return np.asarray(np.median(picked_BNC.reshape(len(starts_BN), -1), axis=1), dtype=np.float64)
