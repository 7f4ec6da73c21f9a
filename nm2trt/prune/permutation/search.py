"""Search for an order of columns in which an N:M pattern keeps more of a score, such as the magnitude.

The value of every exchange of two columns is known at once. With S a group of M columns and c one of them, a row of
S without c keeps its N - 1 largest and the larger of its N-th largest and whatever takes c's place, so the score
that S keeps with d in place of c is

    F[c, d] = sum_r T(r, S - c, N - 1) + sum_r max(t(r, S - c), w(r, d)),

T the sum of the largest N - 1 and t the N-th largest; and sum max(a, b) = (sum a + sum b + sum |a - b|) / 2 is a
city-block distance. An exchange changes F only in the rows of two groups. The search takes all exchanges that gain
and do not touch each other, until none gains, and goes on with a tabu search (Glover 1989), which takes the best
exchange even where it loses and forbids to undo it for a while. Any N:M; the same input gives the same order.

Pool & Yu ("Channel Permutations for N:M Sparsity", NeurIPS 2021) search by exhaustive regroupings of few columns and
by greedy exchanges with a chance to escape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from nm2trt.pattern import NMPattern

Array = NDArray[Any]

OPERATIONS_PER_SECOND = 8e8
"""Absolute differences, and what goes with them, on one usual core; turns seconds into a count that every machine
keeps alike."""

_STEP_OVERHEAD = 8e4
"""What a step costs however small its table is."""
_PATIENCE = 60
"""Steps, and one a column, without a better order before some groups are shuffled."""
_SHUFFLED_GROUPS = 4

_SHARE_OF_TABLE = 0.2
"""The first table of exchanges may take this much of the work; rows are sampled where it would take more."""


def find_order(weight: Array, pattern: NMPattern, *, work: float, seed: int = 0) -> NDArray[np.intp]:
    """Order columns so that N:M along the rows keeps more.

    Args:
        weight: [rows, columns] scores, not negative; M divides the columns.
        pattern: The pattern.
        work: Operations that the search may take.
        seed: Of the tabu search's tenures and of sampled rows.

    Returns:
        Column indices in their new order; the old order where no better one was found.
    """
    identity = np.arange(weight.shape[1])
    if weight.shape[1] <= pattern.m or not weight.size:
        return identity
    rng = np.random.default_rng(seed)
    sample = _sampled(weight, work, rng)
    table = _Exchanges(sample, pattern)
    table.descend(work)
    table.tabu(work, rng)
    return _sorted_groups(table.best_order, pattern.m)


def kept_score(weight: Array, pattern: NMPattern, order: NDArray[np.intp] | None = None) -> float:
    """Sum of the N largest of every M neighboring columns, row by row."""
    columns = weight if order is None else weight[:, order]
    groups = columns.reshape(weight.shape[0], -1, pattern.m)
    split = pattern.m - pattern.n
    return float(np.partition(groups, split, axis=2)[:, :, split:].sum(dtype=np.float64))


def _sampled(weight: Array, work: float, rng: np.random.Generator) -> Array:
    rows, columns = weight.shape
    most = max(int(_SHARE_OF_TABLE * work / columns**2), 64)
    if rows <= most:
        return weight
    return weight[np.sort(rng.choice(rows, most, replace=False))]


def _sorted_groups(order: NDArray[np.intp], m: int) -> NDArray[np.intp]:
    """The order within a group and among groups does not matter: keep it close to the old one."""
    groups = np.sort(order.reshape(-1, m), axis=1)
    return groups[np.argsort(groups[:, 0], kind="stable")].reshape(-1)


class _Exchanges:
    """Columns in groups, and what every exchange of two columns would gain."""

    def __init__(self, weight: Array, pattern: NMPattern) -> None:
        self._n, self._m = pattern.n, pattern.m
        self._columns = np.ascontiguousarray(weight.T, dtype=np.float64)
        count, self._rows = self._columns.shape
        self._sums = self._columns.sum(axis=1)
        self._order = np.arange(count)
        self._group = self._order // self._m
        self._kept = np.zeros(count // self._m)
        self._replaced = np.zeros((count, count))
        self._done = 0.0
        self._refresh(np.arange(count // self._m))
        self._tolerance = 1e-12 * float(self._sums.sum())
        self.best_order = self._order.copy()

    def descend(self, work: float) -> None:
        """Take exchanges that gain, all that do not touch each other at once, until none is left."""
        while self._done < work:
            gains = self._gains()
            partners = gains.argmax(axis=1)
            best = gains[np.arange(partners.size), partners]
            columns = np.argsort(-best, kind="stable")
            columns = columns[best[columns] > self._tolerance]
            if not columns.size:
                break
            touched = np.zeros(self._kept.size, np.bool_)
            for a in columns:
                b = partners[a]
                groups = [self._group[a], self._group[b]]
                if not touched[groups].any():
                    touched[groups] = True
                    self._exchange(a, b)
            self._refresh(np.flatnonzero(touched))
        self.best_order = self._order.copy()

    def tabu(self, work: float, rng: np.random.Generator) -> None:
        """Go on from a local optimum; a column may not go back to the group that it left for some steps."""
        count = self._order.size
        best = self._kept.sum()
        barred = np.zeros((count, self._kept.size), np.int64)
        low = 3
        high = max(low + 1, min(count // 8, 20))
        step = idle = 0
        while self._done < work:
            step += 1
            self._done += _STEP_OVERHEAD
            gains = self._gains()
            bars = barred[:, self._group] > step
            current = self._kept.sum()
            gains[(bars | bars.T) & (gains + current <= best + self._tolerance)] = -np.inf
            a, b = divmod(int(gains.argmax()), count)
            if not np.isfinite(gains[a, b]):
                break
            for column in (a, b):
                barred[column, self._group[column]] = step + int(rng.integers(low, high))
            touched = np.unique([self._group[a], self._group[b]])
            self._exchange(a, b)
            self._refresh(touched)
            idle += 1
            if self._kept.sum() > best + self._tolerance:
                best, idle = self._kept.sum(), 0
                self.best_order = self._order.copy()
            elif idle > _PATIENCE + count:
                idle = 0
                barred[:] = 0
                self._shuffle_groups(rng)

    def _shuffle_groups(self, rng: np.random.Generator) -> None:
        """Go back to the best order and mix the columns of a few groups."""
        self._order = self.best_order.copy()
        groups = self._order.reshape(-1, self._m)
        chosen = rng.choice(len(groups), min(len(groups), _SHUFFLED_GROUPS), replace=False)
        groups[chosen] = rng.permutation(groups[chosen].reshape(-1)).reshape(-1, self._m)
        self._group[self._order] = np.arange(self._order.size) // self._m
        self._refresh(np.arange(len(groups)))

    def _exchange(self, a: np.intp | int, b: np.intp | int) -> None:
        place_a, place_b = np.flatnonzero(self._order == a)[0], np.flatnonzero(self._order == b)[0]
        self._order[place_a], self._order[place_b] = b, a
        self._group[a], self._group[b] = self._group[b], self._group[a]

    def _gains(self) -> Array:
        """[column, column]: gain of exchanging them; -inf within a group."""
        kept = self._kept[self._group]
        gains: Array = self._replaced + self._replaced.T
        gains -= kept[:, None]
        gains -= kept[None, :]
        gains[self._group[:, None] == self._group[None, :]] = -np.inf
        self._done += 5.0 * gains.size
        return gains

    def _refresh(self, groups: NDArray[np.intp]) -> None:
        """Recompute what the columns of these groups could be replaced by."""
        columns = self._order.reshape(-1, self._m)[groups]
        members = self._columns[columns]
        ranked = -np.sort(-members, axis=1)
        top = ranked[:, : self._n].sum(axis=1)
        self._kept[groups] = top.sum(axis=1)
        last, following = ranked[:, self._n - 1 : self._n], ranked[:, self._n : self._n + 1]
        inside = members >= last
        threshold = np.where(inside, following, last)
        others = np.where(inside, top[:, None] - members, top[:, None] - last).sum(axis=2).reshape(-1)
        threshold = threshold.reshape(-1, self._rows)
        distance = cdist(threshold, self._columns, "cityblock")
        self._replaced[columns.reshape(-1)] = (
            others[:, None] + (threshold.sum(axis=1)[:, None] + self._sums[None, :] + distance) / 2
        )
        self._done += float(threshold.shape[0]) * self._columns.size
