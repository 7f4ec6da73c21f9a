"""Errors of points held back, ranges from them, and how often those ranges hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from estimate_fit import BOARD, Candidate, Fit
from estimate_points import Point
from estimate_vector import Points

from nm2trt.estimate.constants import KernelConstants

CLAIMED = 0.8
SHAPE_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Error:
    """Logs of measured over predicted; None where nothing was measured, or no sparse kernel ran."""

    point: Point
    dense: float | None
    sparse: float | None
    ratio: float | None
    predicted_dense_us: float
    predicted_ratio: float


def errors_of(points: Sequence[Point], constants: KernelConstants) -> list[Error]:
    """Errors of some points with some constants."""
    dense, sparse = Points(points, constants).predict(constants)
    found = []
    for point, one, other in zip(points, dense, sparse, strict=True):
        clocks = 1.0
        if point.gpu.key == BOARD and point.kind == "layer":
            clocks = constants.clock_gain.get(BOARD, {}).get(point.precision, 1.0)
        ran = point.chosen is not False
        found.append(
            Error(
                point=point,
                dense=math.log(point.dense_us / one) if point.dense_us else None,
                sparse=math.log(point.sparse_us * clocks / other)
                if point.sparse_us and ran and point.dense_us
                else None,
                ratio=math.log(point.ratio / clocks * other / one) if point.ratio and ran else None,
                predicted_dense_us=float(one),
                predicted_ratio=float(one / other),
            )
        )
    return found


def held_back(
    candidate: Candidate, points: Sequence[Point], key: Callable[[Point], object], starts: int
) -> list[Error]:
    """Errors of every point by constants that were fitted without its whole group."""
    found = []
    for group in sorted({key(point) for point in points}, key=repr):
        inside = [point for point in points if key(point) != group]
        found += errors_of([p for p in points if key(p) == group], Fit(candidate, inside).run(starts)[1])
    return found


def halves_held_back(candidate: Candidate, points: Sequence[Point], engine: str, starts: int) -> list[Error]:
    """Errors of one engine's layers, every other one held back in turn: layers of one shape stay in the fit."""
    own = [point for point in points if point.engine == engine]
    found = []
    for half in (own[::2], own[1::2]):
        inside = [point for point in points if point not in half]
        found += errors_of(half, Fit(candidate, inside).run(starts)[1])
    return found


def shape_folds(points: Sequence[Point]) -> Callable[[Point], int]:
    """Fold of a point: layers of one shape together, in every network and precision."""
    shapes = sorted({point.shape for point in points}, key=repr)
    order = np.random.default_rng(0).permutation(len(shapes))
    fold = {shapes[index]: number % SHAPE_FOLDS for number, index in enumerate(order)}
    return lambda point: fold[point.shape]


def values(errors: Iterable[Error], what: str) -> list[float]:
    """One kind of error, where it is known."""
    return [value for error in errors if (value := getattr(error, what)) is not None]


def groups_of(errors: Sequence[Error], key: Callable[[Point], str]) -> dict[str, list[Error]]:
    """Errors by group."""
    found: dict[str, list[Error]] = {}
    for error in errors:
        found.setdefault(key(error.point), []).append(error)
    return dict(sorted(found.items()))


def score(errors: Sequence[Error], what: str) -> float:
    """Mean over groups of their median absolute error, in percent: large groups count no more than small ones."""
    medians = []
    for group in groups_of(errors, lambda point: point.group).values():
        known = values(group, what)
        if known:
            medians.append(min(0.5, float(np.median(np.abs(known)))))
    return 100 * float(np.mean(medians))


def weighted(errors: Sequence[Error], what: str, key: Callable[[Point], str]) -> tuple[np.ndarray, np.ndarray]:
    """Errors with weights by which every group counts the same."""
    logs, weights = [], []
    for group in groups_of(errors, key).values():
        known = values(group, what)
        logs += known
        weights += [1 / len(known) for _ in known]
    order = np.argsort(logs)
    return np.array(logs)[order], np.array(weights)[order]


def tails(
    errors: Sequence[Error], what: str, key: Callable[[Point], str], share: float = CLAIMED
) -> tuple[float, float]:
    """Range of logs with equal tails that holds `share` of the errors."""
    logs, weights = weighted(errors, what, key)
    place = (np.cumsum(weights) - weights / 2) / weights.sum()
    low, high = (float(np.interp(q, place, logs)) for q in ((1 - share) / 2, (1 + share) / 2))
    return min(0.0, low), max(0.0, high)
