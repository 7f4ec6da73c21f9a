"""Histograms that never grow, against numpy's over all values at once."""

import numpy as np
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nm2trt.calibration.statistics import BINS, TensorStatistics

BATCHES = st.lists(
    hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=6
)


@examples(60)
@given(BATCHES)
def test_counts_are_those_of_one_histogram_over_everything(batches):
    found = TensorStatistics()
    for batch in batches:
        assert found.add(batch)
    values = np.abs(np.concatenate(batches)).astype(np.float64)
    assert (found.smallest, found.largest) == (np.concatenate(batches).min(), np.concatenate(batches).max())
    assert found.counts.sum() == found.values == len(values)
    assert len(found.counts) == BINS
    if not found.span:
        assert not values.any()
        return
    # A value on a bin's edge may fall to either side in float32; sums up to an edge differ by those alone.
    cumulated = np.cumsum(found.counts)
    width = found.span / BINS
    for share in (0.25, 0.5, 0.75, 1.0):
        at = int(share * BINS)
        sure = (values < at * width * (1 - 1e-5)).sum()
        perhaps = (values <= at * width * (1 + 1e-5) + 1e-300).sum()
        assert sure <= cumulated[at - 1] <= perhaps or share == 1.0


def test_a_hundredfold_outlier_costs_no_bins_and_loses_no_counts():
    found = TensorStatistics()
    found.add(np.linspace(0, 1, 1000, dtype=np.float32))
    found.add(np.array([3000.0], np.float32))
    assert found.counts.nbytes == BINS * 8
    assert found.counts.sum() == 1001
    assert found.span >= 3000
    assert np.flatnonzero(found.counts)[-1] == int(3000 / found.span * BINS)


def test_nan_and_infinity_are_told_and_not_counted():
    found = TensorStatistics()
    assert not found.add(np.array([1.0, np.nan], np.float32))
    assert not found.add(np.array([1.0, -np.inf], np.float32))
    assert found.values == 0


def test_zeros_only_is_constant_and_later_values_are_not_lost():
    found = TensorStatistics()
    found.add(np.zeros(7, np.float32))
    assert found.constant
    found.add(np.array([2.0, -1.0], np.float32))
    assert not found.constant
    assert found.counts[0] == 7
    assert found.magnitude == 2.0


def test_tiny_and_half_precision_values_are_counted():
    found = TensorStatistics()
    found.add(np.array([1e-42, 5e-43], np.float32))
    assert found.counts.sum() == 2
    half = TensorStatistics()
    half.add(np.array([1.0, -2.0], np.float16))
    assert half.magnitude == 2.0
