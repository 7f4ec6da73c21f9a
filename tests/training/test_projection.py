import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_masks import slow_mask

from nm2trt.pattern import NMPattern
from nm2trt.training.projection import project

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def expected_mask(weight, pattern, axis):
    moved = weight.movedim(axis, -1)
    rows = moved.reshape(-1, moved.shape[-1]).tolist()
    return torch.tensor([slow_mask(row, pattern) for row in rows]).reshape(moved.shape).movedim(-1, axis)


@given(
    text=st.sampled_from(["2:4", "1:4", "2:8", "4:8", "1:16", "3:5", "2:40"]),
    shape=st.sampled_from([(3, "g"), (2, "g", 3), (2, "g", 2, 3), ("g", 3), ("g",)]),
    groups=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
    last=st.booleans(),
    levels=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=200)
def test_splits_like_a_sort_of_every_group(text, shape, groups, dtype, last, levels, seed):
    pattern = NMPattern.parse(text)
    axis = shape.index("g")
    sizes = [groups * pattern.m if size == "g" else size for size in shape]
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randint(-levels, levels + 1, sizes, generator=generator) * 0.25).to(dtype)
    if last and len(sizes) == 4:
        weight = weight.to(memory_format=torch.channels_last)
    old = torch.randint(0, 8, sizes, dtype=torch.uint8, generator=generator)
    dense, residual = weight.clone(), torch.full_like(weight, 7.0)
    bits = torch.empty_like(weight, dtype=torch.uint8).copy_(old)
    mask = expected_mask(dense, pattern, axis)

    changed = project(weight, residual, bits, pattern, axis, impose=True)

    assert torch.equal(weight, dense * mask)
    assert torch.equal(residual, dense * ~mask)
    assert torch.equal(bits & 1, mask.to(torch.uint8))
    assert torch.equal(bits & 6, old & 6)
    assert int(changed) == int(((old & 1).bool() != mask).sum())


def test_blocks_meet_without_a_seam(monkeypatch):
    weight = torch.randn(6, 40, 3)
    whole, bits = weight.clone(), torch.zeros(weight.shape, dtype=torch.uint8)
    project(whole, None, bits, NMPattern(2, 4), 1, impose=True)
    monkeypatch.setattr("nm2trt.training.projection._BLOCK", 48)
    pieces, other = weight.clone(), torch.zeros(weight.shape, dtype=torch.uint8)
    project(pieces, None, other, NMPattern(2, 4), 1, impose=True)
    assert torch.equal(whole, pieces)
    assert torch.equal(bits, other)
    assert torch.equal(whole, weight * expected_mask(weight, NMPattern(2, 4), 1))


def test_a_weight_with_gaps_in_memory_is_split_too():
    base = torch.randn(8, 32)
    weight = base[:, ::2]
    dense, residual = weight.clone(), torch.zeros(8, 16)
    project(weight, residual, torch.zeros(8, 16, dtype=torch.uint8), NMPattern(2, 4), 1, impose=True)
    mask = expected_mask(dense, NMPattern(2, 4), 1)
    assert torch.equal(weight, dense * mask)
    assert torch.equal(residual, dense * ~mask)


def test_hold_splits_by_the_old_mask():
    weight = torch.randn(4, 8)
    dense, residual = weight.clone(), torch.zeros(4, 8)
    bits = torch.randint(0, 2, (4, 8), dtype=torch.uint8)
    mask = bits.bool().clone()
    assert int(project(weight, residual, bits, NMPattern(2, 4), 1, impose=True, hold=True)) == 0
    assert torch.equal(weight, dense * mask)
    assert torch.equal(residual, dense * ~mask)
    assert torch.equal(bits.bool(), mask)


@pytest.mark.parametrize("dtype", DTYPES)
def test_recording_leaves_the_weight_alone(dtype):
    weight = torch.randn(4, 8).to(dtype)
    before, bits = weight.clone(), torch.zeros(4, 8, dtype=torch.uint8)
    project(weight, None, bits, NMPattern(2, 4), 1, impose=False)
    assert torch.equal(weight, before)
    assert int(bits.sum()) == 16
