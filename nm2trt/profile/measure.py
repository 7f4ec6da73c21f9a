"""Timing: warm-up until steady, then interleaved rounds in shuffled order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nm2trt.artifacts.report import VariantName
from nm2trt.profile.runners.runner import Runner
from nm2trt.profile.statistics import MIN_ROUNDS, Timings

_WINDOW = 8
_STEADY = 0.02
"""Two windows whose medians differ by less than this share are steady."""
_WARMUP_LIMIT_S = 4.0
_WARMUP_MIN_CALLS = 2
_AIM_ROUNDS = 100
LONGEST_SHARE = 3.0
"""A slow network gets up to this many times its budget to reach `MIN_ROUNDS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Timings of all variants at one batch size, paired by round."""

    latency_ms: dict[VariantName, Timings]
    """Variant -> milliseconds, rounds by calls."""
    warmup_s: float
    steady: bool

    @property
    def rounds(self) -> int:
        """Rounds measured."""
        return len(next(iter(self.latency_ms.values())))

    @property
    def calls_per_round(self) -> int:
        """Timed calls of one variant in one round."""
        return len(next(iter(self.latency_ms.values()))[0])


def measure(
    runners: Mapping[VariantName, Runner],
    *,
    duration_s: float,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], None] = lambda _share: None,
) -> Measurement:
    """Time prepared runners against each other.

    In every round each variant makes one untimed call (its weights return to the caches that the other variants used),
    then the timed ones. The number of timed calls is chosen so that about a hundred rounds fit the budget.

    Args:
        runners: Variant -> runner, each prepared with the same batch.
        duration_s: Budget in seconds for the rounds; a slow network may take three times as long.
        seed: Of the order within rounds.
        clock: Seconds; replaced in tests.
        progress: Called with the share done, 0 to 1.
    """
    started = clock()
    typical_ms, steady = _warm_up(runners, limit_s=min(_WARMUP_LIMIT_S, duration_s), clock=clock)
    warmup_s = clock() - started

    round_s = sum(typical_ms.values()) / 1000
    calls = max(1, int(duration_s / (_AIM_ROUNDS * max(round_s, 1e-9))) - 1)
    rng = np.random.default_rng(seed)
    names = list(runners)
    rows: dict[VariantName, list[list[float]]] = {name: [] for name in names}
    started = clock()
    while True:
        for index in rng.permutation(len(names)):
            runner = runners[names[index]]
            runner.run_once()
            rows[names[index]].append([runner.run_once() for _ in range(calls)])
        spent_s, done = clock() - started, len(rows[names[0]])
        progress(min(1.0, max(spent_s / duration_s, 0.0)))
        if spent_s >= LONGEST_SHARE * duration_s or (spent_s >= duration_s and done >= MIN_ROUNDS):
            break
    latency_ms = {name: np.asarray(values, dtype=np.float64) for name, values in rows.items()}
    return Measurement(latency_ms=latency_ms, warmup_s=warmup_s, steady=steady)


def _warm_up(
    runners: Mapping[VariantName, Runner], *, limit_s: float, clock: Callable[[], float]
) -> tuple[dict[VariantName, float], bool]:
    """Run all variants in turn until each is steady or the limit is reached; returns the median of their last calls."""
    last: dict[VariantName, deque[float]] = {name: deque(maxlen=2 * _WINDOW) for name in runners}
    started = clock()
    calls = 0
    steady = False
    while not steady and (calls < _WARMUP_MIN_CALLS or clock() - started < limit_s):
        for name, runner in runners.items():
            last[name].append(runner.run_once())
        calls += 1
        steady = calls >= 2 * _WINDOW and all(_is_steady(np.array(values)) for values in last.values())
    return {name: float(np.median(np.array(values)[-_WINDOW:])) for name, values in last.items()}, steady


def _is_steady(latency_ms: Timings) -> bool:
    before, after = float(np.median(latency_ms[:_WINDOW])), float(np.median(latency_ms[_WINDOW:]))
    return abs(after / before - 1) < _STEADY if before > 0 else True
