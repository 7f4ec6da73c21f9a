"""The search against every permutation there is, and against its own promises."""

import itertools

import numpy as np
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nm2trt.pattern import NMPattern
from nm2trt.prune.permutation.search import find_order, kept_score

WORK = 1e7


def slow_kept(weight, pattern, order):
    total = 0.0
    for row in weight:
        moved = [row[index] for index in order]
        for start in range(0, len(moved), pattern.m):
            total += sum(sorted(moved[start : start + pattern.m], reverse=True)[: pattern.n])
    return total


def partitions(columns, m):
    """Every way to split columns into groups of m, the order inside and among groups aside."""
    if not columns:
        yield []
        return
    first, rest = columns[0], columns[1:]
    for others in itertools.combinations(rest, m - 1):
        left = [column for column in rest if column not in others]
        for tail in partitions(left, m):
            yield [first, *others, *tail]


@pytest.mark.parametrize("text", ["2:4", "1:4", "3:4", "1:2"])
@pytest.mark.parametrize("seed", range(5))
def test_eight_columns_are_solved(text, seed):
    pattern = NMPattern.parse(text)
    weight = np.random.default_rng(seed).random((6, 8))
    best = max(slow_kept(weight, pattern, order) for order in partitions(list(range(8)), pattern.m))
    found = find_order(weight, pattern, work=WORK)
    assert slow_kept(weight, pattern, found) == pytest.approx(best, rel=1e-9)


@given(
    weight=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.sampled_from([4, 8, 16, 24])),
        elements=st.floats(0, 4, width=16),
    ),
    text=st.sampled_from(["2:4", "1:4", "3:4", "1:2", "2:8", "1:8"]),
)
@examples(60)
def test_an_order_is_a_permutation_and_never_worse(weight, text):
    pattern = NMPattern.parse(text)
    if weight.shape[1] % pattern.m:
        return
    order = find_order(weight, pattern, work=1e5)
    assert sorted(order.tolist()) == list(range(weight.shape[1]))
    plain = slow_kept(weight, pattern, range(weight.shape[1]))
    assert kept_score(weight, pattern) == pytest.approx(plain)
    assert kept_score(weight, pattern, order) >= plain - 1e-6 * max(plain, 1)
    assert np.array_equal(order, find_order(weight, pattern, work=1e5)), "deterministic"


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_a_third_of_the_gap_on_a_random_matrix(distribution):
    rng = np.random.default_rng(7)
    weight = rng.random((64, 128)) if distribution == "uniform" else np.abs(rng.standard_normal((64, 128)))
    pattern = NMPattern(2, 4)
    plain = kept_score(weight, pattern)
    bound = np.sort(weight.reshape(-1))[weight.size // 2 :].sum()
    found = kept_score(weight, pattern, find_order(weight, pattern, work=5e7))
    assert (found - plain) / (bound - plain) > 1 / 3


def test_hidden_structure_is_found():
    """Two large columns in every four, but shuffled into halves: the best order keeps everything."""
    weight = np.zeros((32, 32))
    weight[:, :16] = 1 + np.random.default_rng(0).random((32, 16))
    pattern = NMPattern(2, 4)
    assert kept_score(weight, pattern) == pytest.approx(weight.sum() / 2, rel=0.2)
    assert kept_score(weight, pattern, find_order(weight, pattern, work=WORK)) == pytest.approx(weight.sum())


def test_more_rows_than_the_work_allows_are_sampled():
    weight = np.random.default_rng(0).random((5000, 16))
    order = find_order(weight, NMPattern(2, 4), work=1e5)
    assert sorted(order.tolist()) == list(range(16))
