import numpy as np
import pytest
import torch
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.pattern import NMPattern
from nm2trt.training import nm_mask
from nm2trt.training.masks import nm_masks

PATTERNS = ["1:2", "2:4", "1:4", "2:8", "4:8", "1:16", "1:3", "3:5", "2:40", "1:40"]


def slow_mask(row, pattern):
    """Keep the N largest magnitudes of each group of a 1-D row, lowest index first among equals."""
    kept = [False] * len(row)
    for start in range(0, len(row), pattern.m):
        group = list(range(start, start + pattern.m))
        group.sort(key=lambda i: (-abs(row[i]), i))
        for index in group[: pattern.n]:
            kept[index] = True
    return kept


@given(
    text=st.sampled_from(PATTERNS),
    groups=st.integers(1, 3),
    shape=st.sampled_from([("g",), (3, "g"), (2, "g", 3), (2, "g", 2, 2), ("g", 3)]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    levels=st.integers(2, 50),
    seed=st.integers(0, 2**31),
)
@examples(150)
def test_mask_agrees_with_a_sort_of_every_group(text, groups, shape, dtype, levels, seed):
    pattern = NMPattern.parse(text)
    axis = shape.index("g")
    sizes = [groups * pattern.m if size == "g" else size for size in shape]
    # Few levels make many ties, among them 0.0 and -0.0.
    random = np.random.default_rng(seed)
    values = random.integers(-levels, levels + 1, size=sizes) * 0.5
    weight = torch.tensor(values, dtype=dtype)

    mask = nm_mask(weight, pattern, axis)

    rows = np.moveaxis(values, axis, -1).reshape(-1, groups * pattern.m)
    expected = np.array([slow_mask(list(row), pattern) for row in rows])
    found = np.moveaxis(mask.numpy(), axis, -1).reshape(rows.shape)
    assert mask.dtype == torch.bool
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("text", ["2:4", "2:40"])
def test_ties_go_to_the_lowest_index_in_both_algorithms(text):
    pattern = NMPattern.parse(text)
    mask = nm_mask(torch.ones(3, 2 * pattern.m), pattern, 1)
    expected = [True] * pattern.n + [False] * (pattern.m - pattern.n)
    assert mask.tolist() == [expected * 2] * 3


def test_memory_format_does_not_change_the_mask():
    weight = torch.randn(8, 16, 3, 3)
    plain = nm_mask(weight, NMPattern(2, 4), 1)
    last = nm_mask(weight.to(memory_format=torch.channels_last), NMPattern(2, 4), 1)
    assert torch.equal(plain, last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("text", "kept"), [("2:4", [1, 3]), ("1:4", [3]), ("3:4", [0, 1, 3])])
def test_nan_counts_as_larger_than_infinity(dtype, text, kept):
    weight = torch.tensor([[-3.0, float("-inf"), 2.0, float("nan")]], dtype=dtype)
    mask = nm_mask(weight, NMPattern.parse(text), 1)
    assert mask.nonzero()[:, 1].tolist() == kept


def test_two_nan_are_as_large_as_each_other():
    nan = float("nan")
    assert nm_mask(torch.tensor([[1.0, nan, -nan, nan]]), NMPattern(2, 4), 1).tolist() == [[False, True, True, False]]


def test_masks_of_many_weights_are_those_of_each(monkeypatch):
    torch.manual_seed(0)
    weights = [
        torch.randn(3, 8),
        torch.randn(2, 8, 3, 3),
        torch.randn(2, 8, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(16, 2),
        torch.randn(4, 16).bfloat16(),
        torch.randn(4, 16),
    ]
    how = [(NMPattern(2, 4), 1)] * 3 + [(NMPattern(2, 4), 0), (NMPattern(2, 4), 1), (NMPattern(1, 16), 1)]
    for together in (1 << 24, 100):
        monkeypatch.setattr("nm2trt.training.masks._TOGETHER", together)
        found = list(nm_masks(weights, how))
        for weight, (pattern, axis), mask in zip(weights, how, found, strict=True):
            assert mask.shape == weight.shape
            assert torch.equal(mask, nm_mask(weight, pattern, axis))
