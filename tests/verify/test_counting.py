"""The fast counter against a loop over groups."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nm2trt.pattern import NMPattern
from nm2trt.verify import counting
from nm2trt.verify.counting import count_groups

FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ">f4", ">f2")
SMALL = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fnuz, ml_dtypes.int4, ml_dtypes.uint4)
INTEGERS = (np.int8, np.uint8, np.int32)
VALUES = (0.0, 0.0, -0.0, 1.0, -2.0, 0.5, float("nan"), float("inf"), float("-inf"))
WHOLE = (0, 0, 1, 2, 7)


@st.composite
def cases(draw):
    m = draw(st.integers(2, 17))
    pattern = NMPattern(draw(st.integers(1, m - 1)), m)
    rank = draw(st.integers(1, 4))
    axis = draw(st.integers(0, rank - 1))
    shape = [draw(st.integers(1, 3)) for _ in range(rank)]
    shape[axis] = m * draw(st.integers(0, 3))
    dtype = draw(st.sampled_from(FLOATS + SMALL + INTEGERS))
    values = VALUES if dtype in FLOATS else WHOLE
    weight = draw(hnp.arrays(np.float64, tuple(shape), elements=st.sampled_from(values))).astype(dtype)
    if draw(st.booleans()):
        # A view whose memory order is not its index order.
        weight = np.ascontiguousarray(weight.transpose()).transpose()
    return weight, pattern, axis


def slow_count(weight, pattern, axis):
    """(groups, violations, index of a broken group that comes first, non-zeros, not finite, largest)."""
    wide = weight.astype(np.float64)
    groups, broken, largest = 0, [], 0
    for index in itertools.product(*(range(size) for size in weight.shape)):
        if index[axis] % pattern.m:
            continue
        members = [(*index[:axis], index[axis] + i, *index[axis + 1 :]) for i in range(pattern.m)]
        nonzeros = sum(wide[member] != 0 for member in members)
        groups += 1
        largest = max(largest, nonzeros)
        if nonzeros > pattern.n:
            broken.append(index)
    nonzeros = sum(float(value) != 0 for value in wide.reshape(-1))
    nonfinite = sum(not np.isfinite(value) for value in wide.reshape(-1))
    return groups, len(broken), min(broken, default=None), nonzeros, nonfinite, largest


@given(cases(), st.sampled_from((1, 7, 64, 1 << 18)))
def test_count_equals_the_loop_whatever_the_piece_size(case, piece):
    weight, pattern, axis = case
    usual = counting._PIECE
    counting._PIECE = piece
    try:
        found = count_groups(weight, pattern, axis)
    finally:
        counting._PIECE = usual
    assert (
        found.groups,
        found.violations,
        found.first,
        found.nonzeros,
        found.nonfinite,
        found.largest,
    ) == slow_count(weight, pattern, axis)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("m", "axis"), [(256, 0), (300, 1), (512, 1)])
def test_groups_of_more_than_255_do_not_overflow(dtype, m, axis):
    weight = np.ones((m, m), dtype)
    found = count_groups(weight, NMPattern(m - 1, m), axis)
    assert found.largest == m
    assert found.violations == m


def test_every_code_of_the_one_byte_floats():
    for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz):
        weight = np.arange(256, dtype=np.uint8).view(dtype)
        wide = weight.astype(np.float32)
        found = count_groups(weight, NMPattern(2, 4), 0)
        assert found.nonzeros == int((wide != 0).sum())
        assert found.nonfinite == int((~np.isfinite(wide)).sum())


def test_subnormals_are_not_zero():
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        tiny = np.array([1, 1, 1, 0], np.uint32 if dtype is np.float32 else np.uint16).view(dtype)
        assert count_groups(tiny, NMPattern(2, 4), 0).violations == 1


def test_an_axis_that_m_does_not_divide():
    with pytest.raises(ValueError, match="no multiple of 4"):
        count_groups(np.zeros((6, 4)), NMPattern(2, 4), 0)
