import contextlib
from unittest import mock

import pytest
import torch
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from test_masks import slow_mask

from nm2trt.pattern import NMPattern
from nm2trt.training import projection, sparsify
from nm2trt.training.layer_state import SparseLayer, alter_gradients, restore_all
from nm2trt.training.projection import Split, project, project_all

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
PATTERNS = ["1:2", "2:4", "1:4", "1:8", "2:8", "4:8", "1:16", "1:32", "1:3", "3:5", "2:40"]


def in_torch():
    """What runs where there are no blocks, as on a GPU."""
    return mock.patch.object(projection, "_fits_blocks", return_value=False)


def expected_mask(weight, pattern, axis):
    moved = weight.movedim(axis, -1)
    rows = moved.reshape(-1, moved.shape[-1]).tolist()
    return torch.tensor([slow_mask(row, pattern) for row in rows]).reshape(moved.shape).movedim(-1, axis)


@given(
    text=st.sampled_from(PATTERNS),
    shape=st.sampled_from([(3, "g"), (2, "g", 3), (2, "g", 2, 3), ("g", 3), ("g",)]),
    groups=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
    last=st.booleans(),
    blocks=st.booleans(),
    levels=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
@examples(300)
def test_splits_like_a_sort_of_every_group(text, shape, groups, dtype, last, blocks, levels, seed):
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

    with contextlib.nullcontext() if blocks else in_torch():
        changed = project(weight, residual, bits, pattern, axis, impose=True)

    assert torch.equal(weight, dense * mask)
    assert torch.equal(residual, dense * ~mask)
    assert torch.equal(bits & 1, mask.to(torch.uint8))
    assert torch.equal(bits & 6, old & 6)
    assert int(changed) == int(((old & 1).bool() != mask).sum())


@pytest.mark.parametrize("text", ["2:4", "1:4", "1:8", "2:8"])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_meet_without_a_seam(monkeypatch, text, threads):
    pattern = NMPattern.parse(text)
    weight = torch.randn(6, 40, 3)
    whole, bits = weight.clone(), torch.zeros(weight.shape, dtype=torch.uint8)
    project(whole, None, bits, pattern, 1, impose=True)
    monkeypatch.setattr(projection, "_BLOCK", 48)
    monkeypatch.setattr(projection, "_PARALLEL_FROM_WEIGHTS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    pieces, other = weight.clone(), torch.zeros(weight.shape, dtype=torch.uint8)
    assert int(project(pieces, None, other, pattern, 1, impose=True)) == weight.numel() * pattern.n // pattern.m
    assert torch.equal(whole, pieces)
    assert torch.equal(bits, other)
    assert torch.equal(whole, weight * expected_mask(weight, pattern, 1))


def test_many_weights_at_once_are_split_as_each_alone():
    torch.manual_seed(0)
    shapes = {(8, 16): "2:4", (4, 16, 3, 3): "2:4", (4, 32): "1:16", (2, 80): "2:40", (4, 8): "2:4"}
    for path in (contextlib.nullcontext, in_torch):
        together, alone = [], []
        for shape, text in shapes.items():
            for splits in (together, alone):
                generator = torch.Generator().manual_seed(len(splits))
                weight = torch.randn(shape, generator=generator)
                bits = torch.zeros(shape, dtype=torch.uint8)
                splits.append(
                    Split(weight, torch.empty(shape), bits, NMPattern.parse(text), 1, impose=True, hold=shape == (4, 8))
                )
        with path():
            changed = project_all(together)
        for split, count, other in zip(together, changed, alone, strict=True):
            expected = project(other.weight, other.residual, other.bits, other.pattern, 1, impose=True, hold=other.hold)
            assert int(count) == int(expected)
            assert torch.equal(split.weight, other.weight)
            assert torch.equal(split.residual, other.residual)
            assert torch.equal(split.bits, other.bits)


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_infinity_and_the_sign_of_zero_stay_where_they_are(blocks, dtype):
    nan, inf = float("nan"), float("inf")
    weight = torch.tensor([[nan, 1.0, -inf, inf], [-0.0, 0.0, -0.0, 0.0], [1.0, 2.0, nan, -nan]], dtype=dtype)
    residual, bits = torch.ones_like(weight), torch.zeros(weight.shape, dtype=torch.uint8)
    with contextlib.nullcontext() if blocks else in_torch():
        project(weight, residual, bits, NMPattern(2, 4), 1, impose=True)
    assert bits.tolist() == [[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1]]
    assert str(weight.tolist()) == "[[nan, 0.0, -inf, 0.0], [-0.0, 0.0, 0.0, 0.0], [0.0, 0.0, nan, nan]]"
    assert str(residual.tolist()) == "[[0.0, 1.0, 0.0, inf], [0.0, 0.0, -0.0, 0.0], [1.0, 2.0, 0.0, 0.0]]"


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


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(16, 32)
        self.second = torch.nn.Linear(32, 8)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def test_a_step_finds_each_mask_once_however_often_the_net_runs(monkeypatch):
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsifier = sparsify(net, optimizer, "2:4", mask_update_interval=2)
    found = []
    kept = projection.kept
    monkeypatch.setattr(projection, "kept", lambda block, *more: found.append(block.size) or kept(block, *more))
    for step in range(1, 5):
        for _ in range(3):
            net(torch.randn(4, 16)).square().sum().backward()
        net(torch.randn(4, 16))
        assert found == []
        optimizer.step()
        assert sorted(found) == ([] if step % 2 else [256, 512])
        found.clear()
    state = sparsifier.state_dict()["layers"]
    for name, entry in state.items():
        tensors = {key: value for key, value in entry.items() if isinstance(value, torch.Tensor) and value.numel() > 1}
        assert {key: value.nbytes for key, value in tensors.items()} == {
            "residual": net.get_parameter(name).nbytes,
            "bits": net.get_parameter(name).numel(),
        }


def test_restoring_by_multi_tensor_kernels_is_restoring_each(monkeypatch):
    results = []
    for on_gpu in (False, True):
        monkeypatch.setattr("nm2trt.training.layer_state._all_on_gpu", lambda layers, answer=on_gpu: answer)
        torch.manual_seed(0)
        layers = []
        for index in range(3):
            parameter = torch.nn.Parameter(torch.randn(4, 8))
            layer = SparseLayer.of(f"{index}", parameter, 1, NMPattern(2, 4), with_residual=index != 1)
            if index:
                parameter.grad = torch.randn(4, 8)
            if layer.residual is not None:
                layer.residual.normal_()
            layers.append(layer)
        restore_all(layers)
        alter_gradients(layers, 0.25, None)
        results.append([tensor for layer in layers for tensor in (layer.parameter.detach(), layer.parameter.grad)])
    for one, other in zip(*results, strict=True):
        assert one is None or torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("text", ["2:4", "1:4", "4:8", "1:16", "2:40"])
def test_a_gpu_splits_like_a_cpu(text):
    pattern = NMPattern.parse(text)
    weights = [torch.randint(-20, 21, (64, 3 * pattern.m)).float(), torch.randn(16, 2 * pattern.m, 3, 3)]
    splits = [
        [
            Split(
                weight.to(device),
                torch.empty_like(weight, device=device),
                torch.zeros_like(weight, dtype=torch.uint8, device=device),
                pattern,
                1,
                impose=True,
            )
            for weight in weights
        ]
        for device in ("cpu", "cuda")
    ]
    changed = [[int(count) for count in project_all(part)] for part in splits]
    assert changed[0] == changed[1]
    for cpu, gpu in zip(*splits, strict=True):
        assert torch.equal(cpu.weight, gpu.weight.cpu())
        assert torch.equal(cpu.residual, gpu.residual.cpu())
        assert torch.equal(cpu.bits, gpu.bits.cpu())
