"""The comparison rules against a loop over elements, and every kind of output that a network can have."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nm2trt.ort import (
    Reason,
    compare_output,
    compare_outputs,
    describe_comparison,
    first_failure,
    merge_comparisons,
)

_SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
_VALUES = st.one_of(
    st.floats(-100, 100, width=32),
    st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, -3.4028234663852886e38, 1e31, 1e-30]),
)


@st.composite
def _pairs(draw):
    shape = draw(_SHAPES)
    left = draw(hnp.arrays(np.float32, shape, elements=_VALUES))
    right = left.copy()
    for _ in range(draw(st.integers(0, 2))):
        if left.size:
            flat = right.reshape(-1)
            flat[draw(st.integers(0, left.size - 1))] = draw(_VALUES)
    return left, right


def _loop(left, right, tolerance):
    """Whether two float arrays agree, element by element."""

    def kind(value):
        if math.isnan(value):
            return "nan"
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        if abs(value) >= 1e30:
            return "fill" if value > 0 else "-fill"
        return ""

    pairs = [(float(a), float(b)) for a, b in zip(left.flat, right.flat, strict=True)]
    size = max((abs(a) for a, _ in pairs if kind(a) == ""), default=0.0)
    for a, b in pairs:
        if kind(a) != kind(b):
            return Reason.NON_FINITE
        if kind(a) in ("fill", "-fill") and abs(a / b - 1) > tolerance:
            return Reason.NON_FINITE
    for a, b in pairs:
        if kind(a) == "" and abs(a - b) / (size or 1.0) > tolerance:
            return Reason.TOLERANCE
    return Reason.AGREE


@given(_pairs(), st.sampled_from([1e-4, 1e-2, 5e-2]))
def test_floats_are_judged_as_a_loop_over_elements_judges_them(pair, tolerance):
    left, right = pair
    assert compare_output("y", left, right, tolerance=tolerance).reason is _loop(left, right, tolerance)


@given(_pairs(), st.integers(0, 4))
def test_pieces_merge_to_the_whole(pair, cut):
    left, right = (value.reshape(-1) for value in pair)
    whole = compare_output("y", left, right, tolerance=1e-2)
    parts = [
        compare_output("y", left[piece], right[piece], tolerance=1e-2) for piece in (slice(0, cut), slice(cut, None))
    ]
    merged = merge_comparisons(parts)
    assert merged.reason is whole.reason
    for field in ("elements", "nan_count", "infinity_count", "max_abs_error", "scale", "non_finite_mismatches"):
        assert getattr(merged, field) == getattr(whole, field), field


@given(hnp.arrays(hnp.integer_dtypes(), _SHAPES), st.data())
def test_integers_are_equal_or_not(left, data):
    right = left.copy()
    if left.size and data.draw(st.booleans()):
        place = data.draw(st.integers(0, left.size - 1))
        right.reshape(-1)[place] ^= left.dtype.type(1)
    result = compare_output("y", left, right, tolerance=0.5)
    assert result.mismatches == sum(int(a) != int(b) for a, b in zip(left.flat, right.flat, strict=True))
    assert result.passed == np.array_equal(left, right)


def test_large_integers_that_float64_cannot_tell_apart_differ():
    left, right = np.array([2**60], np.int64), np.array([2**60 + 1], np.int64)
    result = compare_output("ids", left, right, tolerance=0.5)
    assert (result.reason, result.mismatches) == (Reason.NOT_EQUAL, 1)
    assert (result.expected, result.found) == (str(2**60), str(2**60 + 1))


def test_a_stated_share_of_integers_may_differ_and_no_more():
    left = np.arange(100)
    right = left.copy()
    right[:2] = 7
    assert compare_output("y", left, right, tolerance=1e-2, mismatch_share=0.02).passed
    assert not compare_output("y", left, right, tolerance=1e-2, mismatch_share=0.019).passed
    assert not compare_output("y", left, right, tolerance=1e-2).passed


def test_a_small_output_beside_a_large_one_is_compared_by_itself():
    expected = {"boxes": np.full((2, 4), 1e4, np.float32), "scores": np.full((2,), 1e-2, np.float32)}
    found = {"boxes": expected["boxes"].copy(), "scores": np.full((2,), 2e-2, np.float32)}
    boxes, scores = compare_outputs(expected, found, tolerance=1e-2)
    assert boxes.passed
    assert scores.reason is Reason.TOLERANCE
    assert scores.max_rel_error == pytest.approx(1.0)
    assert first_failure([boxes, scores]) is scores


def test_a_mask_of_fill_values_does_not_hide_the_scores_beside_it():
    left = np.array([[0.5, np.finfo(np.float32).min]], np.float32)
    right = np.array([[0.9, np.finfo(np.float32).min]], np.float32)
    result = compare_output("y", left, right, tolerance=1e-2)
    assert result.reason is Reason.TOLERANCE
    assert result.index == (0, 0)


@pytest.mark.parametrize(
    ("left", "right", "count"),
    [
        ([1.0, math.nan], [1.0, math.nan], 0),
        ([1.0, math.nan], [1.0, 0.0], 1),
        ([1.0, 0.0], [1.0, math.nan], 1),
        ([math.inf, -math.inf], [math.inf, -math.inf], 0),
        ([math.inf, -math.inf], [-math.inf, -math.inf], 1),
        ([math.inf], [math.nan], 1),
        ([math.inf], [3.4e38], 1),
    ],
)
def test_nan_and_infinities_agree_in_place_and_sign_and_are_counted(left, right, count):
    left, right = np.array(left, np.float32), np.array(right, np.float32)
    result = compare_output("y", left, right, tolerance=1e-2)
    assert result.non_finite_mismatches == count
    assert result.passed == (count == 0)
    assert result.nan_count == int(np.isnan(left).sum())
    assert result.infinity_count == int(np.isinf(left).sum())


def test_rank_0_empty_strings_bools_and_narrow_types():
    agree = {
        "scalar": np.float32(2.0),
        "empty": np.zeros((0, 4), np.float32),
        "text": np.array(["a", "b"], dtype=object),
        "flag": np.array(True),
        "bf16": np.array([1.5], ml_dtypes.bfloat16),
        "fp8": np.array([1.5], ml_dtypes.float8_e4m3fn),
        "int4": np.array([-3], ml_dtypes.int4),
        "complex": np.array([1 + 2j], np.complex64),
    }
    assert all(one.passed for one in compare_outputs(agree, agree, tolerance=1e-4))
    differ = {
        "scalar": np.float32(3.0),
        "empty": np.zeros((0, 5), np.float32),
        "text": np.array(["a", "c"], dtype=object),
        "flag": np.array(False),
        "bf16": np.array([2.5], ml_dtypes.bfloat16),
        "fp8": np.array([2.5], ml_dtypes.float8_e4m3fn),
        "int4": np.array([-4], ml_dtypes.int4),
        "complex": np.array([1 - 2j], np.complex64),
    }
    reasons = {one.name: one.reason for one in compare_outputs(agree, differ, tolerance=1e-4)}
    exact = dict.fromkeys(("text", "flag", "int4"), Reason.NOT_EQUAL)
    floats = dict.fromkeys(("scalar", "bf16", "fp8", "complex"), Reason.TOLERANCE)
    assert reasons == {**exact, **floats, "empty": Reason.SHAPE}


def test_sequences_and_maps_are_compared_entry_by_entry():
    left = {"labels": ["a", "b"], "probabilities": [{0: 0.25, 1: 0.75}], "seq": [np.zeros(2), np.zeros(3)]}
    right = {"labels": ["a", "b"], "probabilities": [{0: 0.25, 1: 0.5}], "seq": [np.zeros(2)]}
    reasons = {one.name: one.reason for one in compare_outputs(left, right, tolerance=1e-4) if not one.passed}
    assert reasons == {"probabilities[0][1]": Reason.TOLERANCE, "seq[1]": Reason.MISSING}


def test_names_shapes_and_types_have_to_be_the_references():
    left = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32), "c": np.zeros(2, np.float32)}
    right = {"a": np.zeros((3, 2), np.float32), "b": np.zeros(2, np.int64), "d": np.zeros(2, np.float32)}
    found = [(one.name, one.reason) for one in compare_outputs(left, right, tolerance=1e-4)]
    assert found == [("a", Reason.SHAPE), ("b", Reason.DTYPE), ("c", Reason.MISSING), ("d", Reason.UNEXPECTED)]
    half = {name: value.astype(np.float16) for name, value in left.items()}
    assert {one.reason for one in compare_outputs(left, half, tolerance=1e-2)} == {Reason.DTYPE}
    assert all(one.passed for one in compare_outputs(left, half, tolerance=1e-2, any_float=True))


def test_the_worst_element_is_named_with_both_values():
    left = np.zeros((2, 3), np.float32)
    left[0, 0] = 1.0
    right = left.copy()
    right[1, 2] = 0.5
    result = compare_output("y", left, right, tolerance=1e-2, piece="batch 2")
    assert (result.index, result.expected, result.found) == ((1, 2), "0", "0.5")
    line = describe_comparison(result, other="ONNX Runtime")
    assert line == "output y: largest error 5.00e-01 of its size 1; batch 2, at [1, 2]: reference 0, ONNX Runtime 0.5"


def test_a_reference_of_zeros_is_held_to_the_tolerance_itself():
    zeros = np.zeros(3, np.float32)
    assert compare_output("y", zeros, zeros + 1e-5, tolerance=1e-4).passed
    assert not compare_output("y", zeros, zeros + 1e-3, tolerance=1e-4).passed


def test_there_is_something_to_merge_and_of_one_output():
    one = compare_output("a", np.zeros(1), np.zeros(1), tolerance=1)
    two = compare_output("b", np.zeros(1), np.zeros(1), tolerance=1)
    with pytest.raises(ValueError, match="no comparison"):
        merge_comparisons([])
    with pytest.raises(ValueError, match="different outputs"):
        merge_comparisons([one, two])
