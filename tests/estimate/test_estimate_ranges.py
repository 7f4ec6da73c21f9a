"""Ranges: the narrowest name wins, far GPUs are never surer than near ones, networks keep their least width."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.estimate.constants import Spread, fitted_constants
from nm2trt.estimate.ranges import (
    LEAST_RATIO,
    LEAST_TOTAL,
    TYPICAL_SHARE,
    names_for,
    product_ranges,
    spread_for,
    total_ranges,
)

factors = st.floats(0.3, 1.0), st.floats(1.0, 3.0)
shares = st.floats(0.0, 1.0)


def constants(**spread):
    return fitted_constants().model_copy(
        update={"spread": {name.replace("_", "."): Spread(low=low, high=high) for name, (low, high) in spread.items()}}
    )


def test_the_narrowest_name_wins():
    some = constants(dense=(0.5, 2.0), dense_int8=(0.9, 1.1), dense_gemm=(0.8, 1.3))
    assert spread_for(some, "dense", *names_for("conv", "int8"), far=False) == Spread(low=0.9, high=1.1)
    assert spread_for(some, "dense", *names_for("conv", "fp8"), far=False) == Spread(low=0.9, high=1.1)
    assert spread_for(some, "dense", *names_for("gemm", "int8"), far=False) == Spread(low=0.8, high=1.3)
    assert spread_for(some, "dense", *names_for("conv", "fp16"), far=False) == Spread(low=0.5, high=2.0)


def test_without_errors_of_unseen_gpus_the_range_is_squared():
    found = spread_for(constants(dense=(0.8, 1.25)), "dense", far=True)
    assert (found.low, found.high) == (pytest.approx(0.64), pytest.approx(1.5625))


@given(near=st.tuples(*factors), far=st.tuples(*factors))
def test_an_unseen_gpu_is_never_surer(near, far):
    some = constants(gain=near, gain_far=far)
    one, other = (spread_for(some, "gain", far=on) for on in (False, True))
    assert other.low <= one.low
    assert other.high >= one.high


@given(ratio=st.floats(1.0, 1.8), spread=st.tuples(*factors), far=st.booleans(), share=shares)
def test_a_network_keeps_its_least_width(ratio, spread, far, share):
    total, found = total_ranges(constants(total=spread, ratio=spread), ratio, far=far, sparse_share=share)
    assert total.low <= 1 - LEAST_TOTAL + 1e-12
    assert total.high >= 1 + LEAST_TOTAL - 1e-12
    part = min(1.0, share / TYPICAL_SHARE)
    if spread[0] < spread[1]:
        assert found.high - found.low >= LEAST_RATIO * part - 1e-9
    assert found.low <= ratio + 1e-12
    assert found.high >= ratio - 1e-12


def test_a_widened_range_keeps_its_shape():
    # Three times as far down as up, before and after.
    _, found = total_ranges(constants(total=(0.8, 1.2), ratio=(0.94, 1.02)), 1.0, far=False)
    assert (1 - found.low) / (found.high - 1) == pytest.approx(3)
    assert found.high - found.low == pytest.approx(LEAST_RATIO)


def test_what_cannot_be_sparse_does_not_spread():
    some = constants(total=(0.8, 1.2), ratio=(0.8, 1.2))
    assert total_ranges(some, 1.0, far=False, sparse_share=0.0)[1] == Spread(low=1.0, high=1.0)


def test_the_ranges_in_the_package_say_something():
    # The goal is a median width of at most 0.35 for networks; single products on unseen GPUs are wider.
    for ratio in (1.05, 1.15, 1.25):
        for far in (False, True):
            found = total_ranges(fitted_constants(), ratio, far=far)[1]
            assert 0.3 <= found.high - found.low <= 0.35 + 1e-3
    dense, ratio = product_ranges(fitted_constants(), "conv", "int8", 1.2, far=False)
    assert 0.6 < dense.low < 1 < dense.high < 1.6
    assert ratio.low < 1.2 < ratio.high
