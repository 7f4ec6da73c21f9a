"""Paired differences over seeds: intervals, what they settle, and what they had the power to see."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student

LEVEL = 0.95
POWER = 0.8
_MOST_ENUMERATED = 6
_RESAMPLES = 20_000


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; a single seed has no interval."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float:
        """Standard deviation of the values."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan

    def half(self, level: float = LEVEL) -> float:
        """Half width of Student's interval; infinite for one seed."""
        n = len(self.values)
        return float(student.ppf(0.5 + level / 2, n - 1) * self.deviation / n**0.5) if n > 1 else math.inf

    def bootstrap(self) -> tuple[float, float]:
        """Percentile interval of the mean; all resamples are listed where they are few."""
        values, n = np.asarray(self.values), len(self.values)
        if n <= _MOST_ENUMERATED:
            chosen = np.array(list(itertools.product(range(n), repeat=n)))
        else:
            chosen = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
        low, high = np.percentile(values[chosen].mean(axis=1), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        return float(low), float(high)

    def sign(self, level: float = LEVEL) -> int:
        """1 or -1 where Student's interval leaves zero out, else 0."""
        return 0 if abs(self.mean) <= self.half(level) else int(math.copysign(1, self.mean))

    def text(self, *, signed: bool = False) -> str:
        """Such as "+0.41 ± 0.12"."""
        mean = f"{self.mean:+.2f}" if signed else f"{self.mean:.2f}"
        return f"{mean} ± {self.half():.2f}" if len(self.values) > 1 else f"{mean} (one seed)"


def detectable(deviation: float, n: int) -> float:
    """Smallest true mean that a two-sided t test of `n` values finds with a probability of 80 %."""
    if n < 2 or not deviation > 0:
        return math.nan if n < 2 else 0.0
    critical = float(student.ppf(0.5 + LEVEL / 2, n - 1))

    def shortfall(effect: float) -> float:
        found = nct.sf(critical, n - 1, effect) + nct.cdf(-critical, n - 1, effect)
        return float(found) - POWER

    high = 2.0
    while shortfall(high) < 0:
        high *= 1.5
    return float(brentq(shortfall, 1e-6, high)) * deviation / n**0.5


def paired(one: dict[int, float], two: dict[int, float]) -> Estimate | None:
    """`one` less `two`, over the seeds that both have."""
    values = tuple(one[seed] - two[seed] for seed in sorted(one) if seed in two)
    return Estimate(values) if values else None


def power_words(estimates: Sequence[Estimate], unit: str) -> str:
    """What the runs could have seen."""
    found = [detectable(one.deviation, len(one.values)) for one in estimates if len(one.values) > 1]
    if not found:
        return "One seed has no power."
    seeds = min(len(one.values) for one in estimates)
    spread = f"{max(found):.2f}" if min(found) == max(found) else f"{min(found):.2f} to {max(found):.2f}"
    return f"{seeds} seeds would have found a difference of {spread} {unit} with 80 % probability."


def judge_all_higher(differences: dict[str, Estimate], patterns: int) -> str:
    """Judge "higher at every pattern": shown, refuted here or open.

    Shown where every interval is above zero. Refuted where one is below it at 95 % for all of them together.
    """
    together = 1 - (1 - LEVEL) / max(1, len(differences))
    if any(one.sign(together) < 0 for one in differences.values()):
        return "refuted here"
    if len(differences) == patterns and all(one.sign() > 0 for one in differences.values()):
        return "shown"
    return "open"


def slopes(gaps: dict[float, dict[int, float]]) -> Estimate | None:
    """Growth of a gap with each halving of the kept weights, fitted seed by seed.

    Args:
        gaps: Share of the weights kept -> gap by seed.
    """
    common = sorted(set.intersection(*(set(by_seed) for by_seed in gaps.values()))) if len(gaps) > 1 else []
    halvings = [-math.log2(share) for share in gaps]
    found = [float(np.polyfit(halvings, [by_seed[seed] for by_seed in gaps.values()], 1)[0]) for seed in common]
    return Estimate(tuple(found)) if found else None


def judge_sign(found: Estimate | None) -> str:
    """Judge "is above zero"."""
    return {1: "shown", -1: "refuted here", 0: "open"}[found.sign() if found else 0]


def judge_within(worse_by: Estimate | None, margin: float) -> str:
    """Judge "is worse by at most `margin`"; positive values are worse."""
    if worse_by is None or worse_by.mean - worse_by.half() <= margin < worse_by.mean + worse_by.half():
        return "open"
    return "shown" if worse_by.mean + worse_by.half() <= margin else "refuted here"
