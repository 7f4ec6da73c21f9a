"""Ranges against slow, obvious searches."""

import numpy as np
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nm2trt.calibration.ranges import Method, entropy_bin, kl_divergence, mse_range, percentile_bin
from nm2trt.errors import ConfigError

COUNTS = hnp.arrays(np.int64, st.integers(129, 400), elements=st.integers(0, 50)).filter(lambda c: c[1:].any())


def slow_divergence(bins, i):
    """Migacz's search for one candidate, in loops."""
    levels = [[] for _ in range(128)]
    for b in range(i):
        levels[b * 128 // i].append(b)
    candidate = [0.0] * i
    for members in levels:
        filled = [b for b in members if bins[b] > 0]
        for b in filled:
            candidate[b] = sum(bins[m] for m in members) / len(filled)
    reference = list(bins[:i])
    reference[-1] += sum(bins[i:])
    if not sum(candidate):
        return np.inf
    total = 0.0
    for p, q in zip(reference, candidate, strict=True):
        if p > 0:
            if q == 0:
                return np.inf
            p, q = p / sum(reference), q / sum(candidate)
            total += p * np.log(p / q)
    return total


@examples(30)
@given(COUNTS, st.integers(128, 400))
def test_divergence_is_that_of_the_slow_loop(counts, i):
    i = min(i, len(counts))
    bins = counts.astype(np.float64)
    slow, fast = slow_divergence(bins, i), kl_divergence(bins[:i], float(bins[i:].sum()))
    assert fast == pytest.approx(slow, rel=1e-9, abs=1e-12)


def test_entropy_finds_the_least_divergence_of_all_candidates_near_the_best_coarse_one():
    rng = np.random.default_rng(0)
    values = np.abs(rng.laplace(size=200_000))
    counts, _ = np.histogram(values, 1024, range=(0, values.max()))
    found = entropy_bin(counts)
    bins = counts.astype(np.float64)
    bins[0] = bins[1]
    all_of_them = [kl_divergence(bins[:i], float(bins[i:].sum())) for i in range(128, len(bins) + 1)]
    assert all_of_them[found - 128] <= 1.1 * min(all_of_them)
    assert found < 0.9 * len(bins)  # a long tail is worth clipping


def test_entropy_keeps_few_bins_whole_and_clips_a_lone_outlier():
    assert entropy_bin(np.ones(100, np.int64)) == 100
    counts = np.zeros(4096, np.int64)
    counts[:1200] = 1e6 * np.exp(-((np.arange(1200) / 200) ** 2) / 2)
    counts[4095] = 1
    assert 600 <= entropy_bin(counts) <= 1400


@examples(50)
@given(hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(0, 4, width=32)), st.floats(50, 100))
def test_percentile_bin_covers_the_share_and_not_a_bin_more(values, percentile):
    counts, _ = np.histogram(values, 64, range=(0, 4))
    found = percentile_bin(counts, percentile)
    assert counts[:found].sum() >= percentile / 100 * counts.sum() - 1e-6
    assert counts[: found - 1].sum() < percentile / 100 * counts.sum() + 1e-6


def test_mse_range_is_the_best_of_a_brute_force_search():
    rng = np.random.default_rng(1)
    values = np.concatenate([np.abs(rng.standard_normal(20_000)), [40.0]])
    counts, edges = np.histogram(values, 2048, range=(0, 40))
    found = mse_range(counts, edges[1])

    def loss(reach):
        scale = reach / 127
        return np.mean((values - np.clip(np.rint(values / scale), 0, 127) * scale) ** 2)

    best = min(loss(reach) for reach in np.linspace(0.5, 40, 400))
    assert loss(found) <= 1.05 * best


@pytest.mark.parametrize("text", ["entropy", "minmax", "mse", "percentile", "percentile:99.9", "percentile:100"])
def test_no_range_is_beyond_the_largest_magnitude(text):
    values = np.abs(np.random.default_rng(2).standard_normal(5000))
    counts, edges = np.histogram(values, 4096, range=(0, 1.7 * values.max()))
    reach = Method.parse(text).range_of(counts, edges[1], float(values.max()))
    assert 0 < reach <= values.max()
    if text in ("minmax", "percentile:100"):
        assert reach == pytest.approx(values.max(), rel=1e-3)


@pytest.mark.parametrize("text", ["", "kl", "percentile:", "percentile:49", "percentile:101", "percentile:1.2.3"])
def test_unknown_methods_are_refused(text):
    with pytest.raises(ConfigError, match="unknown method"):
        Method.parse(text)


def test_values_that_pile_up_at_a_clips_end_are_kept():
    """Behind a Hardtanh; the divergence alone cuts the pile off."""
    counts = np.full(2000, 100, np.int64)
    counts[-20:] = 20_000
    assert entropy_bin(counts) >= 1980
