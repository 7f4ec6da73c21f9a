"""How large a value INT8 should reach: four ways to choose it from a histogram of magnitudes.

Quantization is symmetric with zero point 0, so one number per tensor is chosen, the range: magnitudes up to it are
rounded to 127 steps, larger ones are clipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import ConfigError

LEVELS = 127
"""Largest INT8 value; -128 is left unused, so that the grid is symmetric."""
_ENTROPY_LEVELS = 128
_MOST_CLIPPED = 0.05
"""Share of the magnitudes that the entropy method may clip."""
_COARSE = 16
_MSE_CANDIDATES = 200
_PERCENTILE = re.compile(r"percentile:([0-9.]+)")

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Method:
    """How ranges are chosen."""

    name: str
    """entropy, minmax, percentile or mse."""
    percentile: float = 99.99

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read `entropy`, `minmax`, `mse`, `percentile` or `percentile:99.9`.

        Raises:
            ConfigError: It is none of these.
        """
        if text in ("entropy", "minmax", "mse", "percentile"):
            return cls(text)
        match = _PERCENTILE.fullmatch(text)
        try:
            share = float(match[1]) if match else 0.0
        except ValueError:
            share = 0.0
        if not 50 <= share <= 100:
            raise ConfigError(
                f"unknown method {text!r}",
                where="--method",
                hint="choose entropy, minmax, mse, percentile (99.99) or percentile:P with P from 50 to 100",
            )
        return cls("percentile", share)

    def __str__(self) -> str:
        return f"percentile:{self.percentile:g}" if self.name == "percentile" else self.name

    def range_of(self, counts: Counts, bin_width: float, largest: float) -> float:
        """Choose the range of a tensor.

        Args:
            counts: How many magnitudes fell into each bin; bin i covers i * bin_width to (i + 1) * bin_width.
            bin_width: Width of a bin.
            largest: The largest magnitude, larger than 0.

        Returns:
            The range, at most `largest`.
        """
        filled = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 1
        counts = counts[:filled]
        if self.name == "minmax":
            return largest
        if self.name == "percentile":
            chosen = percentile_bin(counts, self.percentile)
        elif self.name == "mse":
            return min(mse_range(counts, bin_width), largest)
        else:
            chosen = entropy_bin(counts)
        return min(chosen * bin_width, largest)


def percentile_bin(counts: Counts, percentile: float) -> int:
    """Return the fewest bins from 0 that hold `percentile` % of all magnitudes."""
    cumulated = np.cumsum(counts, dtype=np.float64)
    return int(np.searchsorted(cumulated, cumulated[-1] * percentile / 100)) + 1


def entropy_bin(counts: Counts) -> int:
    """Return the number of bins whose clipping loses the least information (Kullback-Leibler divergence).

    TensorRT's entropy calibration (Migacz, 8-bit inference with TensorRT, GTC 2017): for each candidate i, the
    reference is the first i bins with all that lies beyond added to the last; the candidate is those bins merged into
    128 levels and spread evenly over the bins that are not empty. The first bin is given the second's count, so that
    the exact zeros behind a ReLU, which any range represents, do not decide. Candidates are tried at every 16th bin,
    and then one by one around the best. Only those are tried that clip few values: behind a Clip or Hardtanh the values
    pile up at its ends, and a range that cuts the pile off loses no information by this measure, but most of the sum.
    """
    bins = counts.astype(np.float64)
    if len(bins) <= _ENTROPY_LEVELS:
        return len(bins)
    bins[0] = bins[1]
    beyond = np.concatenate([np.cumsum(bins[::-1])[::-1], [0.0]])
    coarse = list(range(_ENTROPY_LEVELS, len(bins), _COARSE))
    if coarse[-1] != len(bins):
        coarse.append(len(bins))
    fewest = int(np.argmax(beyond <= _MOST_CLIPPED * beyond[0]))
    best = _least(bins, beyond, [i for i in coarse if i >= fewest])
    fine = range(max(best - _COARSE, _ENTROPY_LEVELS, fewest), min(best + _COARSE, len(bins)) + 1)
    return _least(bins, beyond, fine)


def _least(bins: NDArray[np.float64], beyond: NDArray[np.float64], candidates: Any) -> int:
    """Candidate of the least divergence; of equal ones the largest, which clips less."""
    best, least = len(bins), np.inf
    for i in candidates:
        divergence = kl_divergence(bins[:i], float(beyond[i]))
        if divergence <= least:
            best, least = i, divergence
    return int(best)


def kl_divergence(kept: NDArray[np.float64], clipped: float) -> float:
    """Information lost when the bins `kept` become 128 levels and `clipped` more values fall into the last bin."""
    i = len(kept)
    # Bin b lies in level floor(b * 128 / i).
    starts = -(-np.arange(_ENTROPY_LEVELS) * i // _ENTROPY_LEVELS)
    filled = kept > 0
    sums = np.add.reduceat(kept, starts)
    counts = np.add.reduceat(filled.astype(np.float64), starts)
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    levels = np.repeat(means, np.diff(np.append(starts, i)))
    candidate = np.where(filled, levels, 0.0)
    reference = kept.copy()
    reference[-1] += clipped
    total, total_candidate = reference.sum(), candidate.sum()
    if total == 0 or total_candidate == 0:
        return np.inf
    present = reference > 0
    p, q = reference[present] / total, candidate[present] / total_candidate
    if (q == 0).any():
        return np.inf
    return float(np.sum(p * np.log(p / q)))


def mse_range(counts: Counts, bin_width: float) -> float:
    """Return the range with the least mean squared error of rounding and clipping, each bin taken at its middle."""
    middles = (np.arange(len(counts)) + 0.5) * bin_width
    filled = counts > 0
    values, weights = middles[filled], counts[filled].astype(np.float64)
    largest = len(counts) * bin_width
    best, least = largest, np.inf
    for share in np.linspace(1.0, 0.05, _MSE_CANDIDATES):
        scale = share * largest / LEVELS
        error = values - np.minimum(np.rint(values / scale), LEVELS) * scale
        loss = float(weights @ (error * error))
        if loss < least:
            best, least = float(share * largest), loss
    return best
