import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nm2trt.pattern import NMPattern
from nm2trt.training import nm_mask

PATTERNS = ["1:2", "2:4", "1:4", "2:8", "4:8", "1:16", "3:5", "2:40"]


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
@settings(max_examples=150, deadline=None)
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
