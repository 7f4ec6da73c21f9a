"""nm2trt.pattern against loops that a reader can check by eye."""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern, conforms, grouped, mask, nonzeros_per_group

DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
# Few distinct magnitudes: ties are the rule, not the exception.
VALUES = (-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0, math.inf, -math.inf)

patterns = st.integers(2, 9).flatmap(lambda m: st.builds(NMPattern, st.integers(1, m - 1), st.just(m)))


@st.composite
def weights(draw, values=VALUES):
    """(weight, pattern, axis) with the axis a multiple of M."""
    pattern = draw(patterns)
    rank = draw(st.integers(1, 4))
    axis = draw(st.integers(0, rank - 1))
    shape = [draw(st.integers(1, 3)) for _ in range(rank)]
    shape[axis] = pattern.m * draw(st.integers(1, 3))
    numbers = draw(hnp.arrays(np.float64, tuple(shape), elements=st.sampled_from(values)))
    return numbers.astype(draw(st.sampled_from(DTYPES))), pattern, draw(st.sampled_from((axis, axis - rank)))


def groups_by_loop(shape, m, axis):
    """Yield the list of full indices of every group."""
    axis %= len(shape)
    others = [range(size) for position, size in enumerate(shape) if position != axis]
    for rest in itertools.product(*others):
        for start in range(0, shape[axis], m):
            yield [(*rest[:axis], start + offset, *rest[axis:]) for offset in range(m)]


def is_zero(value):
    return float(value) == 0.0


@given(weights())
def test_mask_keeps_the_largest_and_the_lowest_index_of_equals(case):
    weight, pattern, axis = case
    found = mask(weight, pattern, axis)
    assert found.shape == weight.shape
    assert found.dtype == np.bool_
    for group in groups_by_loop(weight.shape, pattern.m, axis):
        ranked = sorted(range(pattern.m), key=lambda i, group=group: (-abs(float(weight[group[i]])), i))
        for i, index in enumerate(group):
            assert found[index] == (i in ranked[: pattern.n])


@given(weights((*VALUES, math.nan)))
def test_counts_and_conforms_equal_the_loop(case):
    weight, pattern, axis = case
    counts = [
        sum(not is_zero(weight[index]) for index in group) for group in groups_by_loop(weight.shape, pattern.m, axis)
    ]
    assert nonzeros_per_group(weight, pattern, axis).reshape(-1).tolist() == counts
    assert conforms(weight, pattern, axis) == all(count <= pattern.n for count in counts)


@given(weights())
def test_masked_weights_conform(case):
    weight, pattern, axis = case
    kept = np.where(mask(weight, pattern, axis), weight, np.zeros((), weight.dtype))
    assert conforms(kept, pattern, axis)


@given(weights())
def test_grouped_is_a_rearrangement_in_group_order(case):
    weight, pattern, axis = case
    loop = [[float(weight[index]) for index in group] for group in groups_by_loop(weight.shape, pattern.m, axis)]
    assert grouped(weight, pattern, axis).astype(np.float64).reshape(-1, pattern.m).tolist() == loop


@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_zero_is_zero_and_nan_is_not(dtype):
    two_four = NMPattern(2, 4)
    assert conforms(np.array([-0.0, 1, -0.0, 2], dtype), two_four, 0)
    assert not conforms(np.array([np.nan, 1, -0.0, 2], dtype), two_four, 0)
    assert not conforms(np.array([np.inf, -np.inf, 0, 2], dtype), two_four, 0)


def test_an_axis_that_m_does_not_divide():
    weight = np.zeros((6, 4), np.float32)
    assert not conforms(weight, NMPattern(2, 4), 0)
    assert conforms(weight, NMPattern(2, 4), 1)
    for function in (grouped, mask, nonzeros_per_group):
        with pytest.raises(ValueError, match="no multiple of 4"):
            function(weight, NMPattern(2, 4), 0)


@pytest.mark.parametrize("text", ["4:2", "2:3:4", "0:4", "2:2", "2", "", ":", "a:b", "-1:4", "2.0:4", "2:4x", "2:2048"])
def test_bad_patterns_are_refused_in_one_line(text):
    with pytest.raises(ConfigError) as caught:
        NMPattern.parse(text)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@given(patterns)
def test_text_round_trip(pattern):
    assert NMPattern.parse(str(pattern)) == pattern
    assert NMPattern.parse(f" {pattern} ") == pattern
    assert pattern.density == pattern.n / pattern.m


def legal_by_brute_force(n, m):
    """Whether no legal choice of non-zeros puts more than 2 into an aligned group of 4.

    Groups fill independently, so the worst case of a group of 4 is the sum of what each N:M group can put there.
    """
    length = math.lcm(m, 4)
    choices = [sum(1 << i for i in kept) for kept in itertools.combinations(range(m), n)]
    for four in range(0, length, 4):
        window = 0b1111 << four
        worst = sum(max((choice << start & window).bit_count() for choice in choices) for start in range(0, length, m))
        if worst > 2:
            return False
    return True


@pytest.mark.parametrize("m", [*range(2, 13), 16])
def test_tensorrt_legal_equals_brute_force_over_all_legal_groups(m):
    for n in range(1, m):
        assert NMPattern(n, m).tensorrt_legal == legal_by_brute_force(n, m), f"{n}:{m}"


@examples(50)
@given(st.integers(2, 6).flatmap(lambda m: st.tuples(st.integers(1, m - 1), st.just(m))), st.randoms())
def test_every_weight_of_a_tensorrt_legal_pattern_is_2_of_4(n_m, random):
    pattern = NMPattern(*n_m)
    length = math.lcm(pattern.m, 4)
    weight = np.array([random.choice([1.0, 2.0, 3.0]) for _ in range(length)])
    sparse = weight * mask(weight, pattern, 0)
    if pattern.tensorrt_legal:
        assert conforms(sparse, NMPattern(2, 4), 0)
