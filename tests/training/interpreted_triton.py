"""Run by test_gpu_projection.py in a process with TRITON_INTERPRET=1, which Triton reads when it is imported."""

import os
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_masks import slow_mask
from torch.utils._python_dispatch import TorchDispatchMode

from nm2trt.pattern import NMPattern
from nm2trt.training import gpu_projection, layer_state, projection, snapshot, sparsify
from nm2trt.training.projection import Split, project_all

assert os.environ["TRITON_INTERPRET"] == "1"

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
PATTERNS = ["1:2", "2:4", "1:4", "1:8", "2:8", "4:8", "1:16", "1:32", "1:3", "3:5", "2:40"]


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(projection, "_fits_blocks", lambda split: False)
    monkeypatch.setattr(gpu_projection, "runs_on_gpu", lambda weight: True)
    monkeypatch.setattr(projection, "_project_torch", _must_not_run)


def _must_not_run(splits):
    assert not splits, "the torch path ran"
    return []


def expected_mask(weight, pattern, axis):
    moved = weight.movedim(axis, -1)
    rows = moved.reshape(-1, moved.shape[-1]).tolist()
    return torch.tensor([slow_mask(row, pattern) for row in rows]).reshape(moved.shape).movedim(-1, axis)


@given(
    text=st.sampled_from(PATTERNS),
    shapes=st.lists(st.sampled_from([(3, "g"), (2, "g", 3), (2, "g", 2, 3), ("g", 3), ("g",)]), min_size=1, max_size=3),
    groups=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
    last=st.booleans(),
    levels=st.integers(1, 40),
    impose=st.booleans(),
    with_residual=st.booleans(),
    hold=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_splits_like_a_sort_of_every_group(
    text, shapes, groups, dtype, last, levels, impose, with_residual, hold, seed
):
    pattern = NMPattern.parse(text)
    generator = torch.Generator().manual_seed(seed)
    splits, before = [], []
    for shape in shapes:
        axis = shape.index("g")
        sizes = [groups * pattern.m if size == "g" else size for size in shape]
        weight = (torch.randint(-levels, levels + 1, sizes, generator=generator) * 0.25).to(dtype)
        if last and len(sizes) == 4:
            weight = weight.to(memory_format=torch.channels_last)
        bits = torch.empty_like(weight, dtype=torch.uint8)
        bits.copy_(torch.randint(0, 8, sizes, dtype=torch.uint8, generator=generator))
        residual = torch.full_like(weight, 7.0) if with_residual else None
        before.append((weight.clone(), bits.clone()))
        splits.append(Split(weight, residual, bits, pattern, axis, impose=impose, hold=hold))

    changed = project_all(splits)

    for split, count, (dense, old) in zip(splits, changed, before, strict=True):
        mask = (old & 1).bool() if hold else expected_mask(dense, pattern, split.axis)
        assert torch.equal(split.weight, dense * mask if impose else dense)
        if with_residual:
            assert torch.equal(split.residual, dense * ~mask if impose else torch.full_like(dense, 7.0))
        assert torch.equal(split.bits & 1, mask.to(torch.uint8))
        assert torch.equal(split.bits & 6, old & 6)
        assert int(count) == int(((old & 1).bool() != mask).sum())


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_infinity_and_the_sign_of_zero_stay_where_they_are(dtype):
    nan, inf = float("nan"), float("inf")
    weight = torch.tensor([[nan, 1.0, -inf, inf], [-0.0, 0.0, -0.0, 0.0], [1.0, 2.0, nan, -nan]], dtype=dtype)
    residual, bits = torch.ones_like(weight), torch.zeros(weight.shape, dtype=torch.uint8)
    project_all([Split(weight, residual, bits, NMPattern(2, 4), 1, impose=True)])
    assert bits.tolist() == [[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1]]
    assert str(weight.tolist()) == "[[nan, 0.0, -inf, 0.0], [-0.0, 0.0, 0.0, 0.0], [0.0, 0.0, nan, nan]]"
    assert str(residual.tolist()) == "[[0.0, 1.0, 0.0, inf], [0.0, 0.0, -0.0, 0.0], [1.0, 2.0, 0.0, 0.0]]"


def test_a_weight_of_many_programs_and_an_unaligned_one():
    pattern = NMPattern(2, 4)
    memory = torch.randn(4 * 3000 + 1)
    weights = [torch.randn(12, 1000), memory[1:].view(12, 1000)]
    assert weights[1].data_ptr() % 16 != 0
    splits = [
        Split(w, torch.empty_like(w), torch.zeros_like(w, dtype=torch.uint8), pattern, 1, impose=True) for w in weights
    ]
    dense = [w.clone() for w in weights]
    counts = [int(count) for count in project_all(splits)]
    assert counts == [6000, 6000]
    for split, was in zip(splits, dense, strict=True):
        assert torch.equal(split.weight, was * expected_mask(was, pattern, 1))
        assert torch.equal(split.weight + split.residual, was)


class Counted(TorchDispatchMode):
    """Names of the operations that torch would hand to a device; views cost no kernel."""

    VIEWS = ("detach", "view", "unbind", "select", "as_strided", "alias", "permute", "t", "transpose")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.partition(".")[0]
        if name not in self.VIEWS:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


class Deep(torch.nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.layers = torch.nn.Sequential(*[torch.nn.Linear(16, 16) for _ in range(depth)], torch.nn.Linear(16, 2))

    def forward(self, x):
        return self.layers(x)


def operations_of_a_step(patch, depth, *, sparse):
    """What the fifth optimizer step hands to the device, and the layers of each launch of the kernel."""
    patch.setattr(layer_state, "_all_on_gpu", lambda layers: True)
    # A GPU's values are read every 100th step.
    patch.setattr(snapshot.Snapshot, "has_changed", lambda self, parameter, *, wait=False: False)
    launches = []
    run = gpu_projection._run

    def launch(*arguments):
        # The interpreter's own copies are no kernels of a GPU.
        launches.append(len(arguments[1]))
        with torch._C._DisableTorchDispatch():
            run(*arguments)

    net = Deep(depth)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, foreach=True)
    if sparse:
        sparsify(net, optimizer, "2:4", decay=0.1)
    for _ in range(4):
        net(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    net(torch.randn(4, 16)).square().sum().backward()
    patch.setattr(gpu_projection, "_run", launch)
    with Counted() as counted:
        optimizer.step()
    return Counter(counted.names), launches


@pytest.mark.parametrize("depth", [2, 20])
def test_what_a_step_launches_does_not_grow_with_the_number_of_layers(monkeypatch, depth):
    with monkeypatch.context() as patch:
        dense, none = operations_of_a_step(patch, depth, sparse=False)
    with monkeypatch.context() as patch:
        sparse, launches = operations_of_a_step(patch, depth, sparse=True)
    assert none == []
    # Gradients with the decay term, made in the residuals' memory; dense weights; counters and the flips.
    # The copy is of a thousand values of each, to tell later what was written from outside.
    assert sparse - dense == {"_foreach_mul_": 1, "_foreach_add_": 3, "zeros": 1, "_foreach_copy_": 1}
    assert launches == [depth]


def test_a_compiler_that_fails_costs_a_warning_and_no_weight(monkeypatch):
    monkeypatch.setattr(gpu_projection.KernelState, "off", False)
    monkeypatch.undo()
    monkeypatch.setattr(projection, "_fits_blocks", lambda split: False)
    monkeypatch.setattr(gpu_projection, "fits_kernel", lambda split: not gpu_projection.KernelState.off)
    monkeypatch.setattr(projection, "fits_kernel", lambda split: not gpu_projection.KernelState.off)

    def fails(*arguments):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(gpu_projection, "_run", fails)
    monkeypatch.setattr(gpu_projection.KernelState, "off", False)
    weight = torch.randn(4, 8)
    dense = weight.clone()
    split = Split(weight, torch.empty(4, 8), torch.zeros(4, 8, dtype=torch.uint8), NMPattern(2, 4), 1, impose=True)
    with pytest.warns(UserWarning, match="no C compiler"):
        (count,) = project_all([split])
    assert int(count) == 16
    assert torch.equal(split.weight, dense * expected_mask(dense, NMPattern(2, 4), 1))
    assert gpu_projection.KernelState.off
