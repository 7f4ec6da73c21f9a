"""Each method against a slow float64 loop over its published rule."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_sparsifier import LR, MOMENTUM, STEPS, WEIGHT_DECAY, Net, batches_of, forward_with, sgd, slow_keep, train

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern
from nm2trt.training import sparsify

SPARSE = ("conv.weight", "fc.weight")


def slow_threshold(weight, pattern):
    """sign(w) * max(abs(w) - t, 0), t the (M - N)-th smallest magnitude of the group, one weight after another."""
    found = np.zeros(weight.shape)
    for place in np.ndindex(weight.shape[0], *weight.shape[2:]):
        row = weight[(place[0], slice(None), *place[1:])]
        for start in range(0, len(row), pattern.m):
            group = row[start : start + pattern.m]
            limit = sorted(abs(group))[pattern.m - pattern.n - 1]
            for offset, value in enumerate(group):
                found[(place[0], start + offset, *place[1:])] = np.sign(value) * max(abs(value) - limit, 0.0)
    return found


def reference(net, steps, seen_of, decay_of=lambda step: 0.0, pattern=None):
    """SGD on W by the gradient at `seen_of(name, W, step)`, plus decay_of(step) * (1 - E) * W."""
    dense = {name: value.detach().numpy().copy() for name, value in net.named_parameters()}
    velocity = dict.fromkeys(dense)
    for step, (x, y) in enumerate(batches_of(steps)):
        seen = {
            name: torch.tensor(seen_of(name, value, step) if name in SPARSE else value, requires_grad=True)
            for name, value in dense.items()
        }
        gradients = torch.autograd.grad(F.cross_entropy(forward_with(seen, x), y), list(seen.values()))
        for (name, weight), gradient in zip(list(dense.items()), gradients, strict=True):
            g = gradient.numpy() + WEIGHT_DECAY * weight
            if name in SPARSE and decay_of(step):
                g = g + decay_of(step) * (1.0 - slow_keep(weight, pattern)) * weight
            velocity[name] = g if velocity[name] is None else MOMENTUM * velocity[name] + g
            dense[name] = weight - LR * velocity[name]
    return dense


def fresh():
    torch.manual_seed(0)
    return Net().double()


def check(net, sparsifier, dense, seen):
    for name, expected in dense.items():
        ours = sparsifier.dense_state_dict(net)[name].numpy()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9, err_msg=name)
    for name in SPARSE:
        np.testing.assert_allclose(net.state_dict()[name].numpy(), seen(name), rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("text", ["2:4", "1:4", "4:8", "1:16"])
def test_s_ste_is_the_soft_threshold_with_a_frozen_scale(text):
    net, pattern = fresh(), NMPattern.parse(text)
    scale = {}

    def seen(name, weight, _step):
        shrunk = slow_threshold(weight, pattern)
        scale.setdefault(name, (weight * shrunk).sum() / (shrunk * shrunk).sum())
        return scale[name] * shrunk

    dense = reference(copy.deepcopy(net), STEPS, seen)
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, text, "s-ste")
    train(net, optimizer, STEPS)
    check(net, sparsifier, dense, lambda name: seen(name, dense[name], STEPS))
    assert sparsifier.record_sad().total.flips > 0


@pytest.mark.parametrize("steps", [5, STEPS])
def test_a_decaying_mask_fades_linearly_and_ends_hard(steps):
    net, pattern = fresh(), NMPattern(2, 4)

    def seen(_name, weight, step):
        keep = slow_keep(weight, pattern)
        factor = max(0.0, 1.0 - step / 6)  # three quarters of 8 steps
        return (keep + (1 - keep) * factor) * weight

    dense = reference(copy.deepcopy(net), steps, seen)
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4", "decaying-mask", total_steps=8)
    assert sparsifier.patterns() == {}
    train(net, optimizer, steps)
    check(net, sparsifier, dense, lambda name: seen(name, dense[name], steps))
    assert set(sparsifier.patterns()) == (set(SPARSE) if steps >= 6 else set())


KEPT_OF = {
    "2:4": [3] * 9 + [2],
    "1:4": [3] * 5 + [2] * 4 + [1],
    "1:16": [15] * 3 + [8] * 2 + [4] * 2 + [2] * 2 + [1],
    "3:4": [3] * 10,
}
"""N in the forward pass of each of ten steps of twelve: the first nine, three quarters, are shared out evenly."""


@pytest.mark.parametrize("text", KEPT_OF)
def test_a_structure_decays_by_halves_and_ends_at_the_pattern(text):
    net, pattern = fresh(), NMPattern.parse(text)

    def seen(_name, weight, step):
        return slow_keep(weight, NMPattern((KEPT_OF[text] + [pattern.n])[step], pattern.m)) * weight

    dense = reference(copy.deepcopy(net), STEPS, seen)
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, text, "decaying-mask", total_steps=12, mask_decay="structured")
    train(net, optimizer, STEPS)
    check(net, sparsifier, dense, lambda name: seen(name, dense[name], STEPS))
    assert set(sparsifier.patterns()) == set(SPARSE)


@pytest.mark.parametrize("steps", [4, STEPS])
def test_a_mask_decays_exponentially_to_a_hundredth_and_ends_hard(steps):
    net, pattern = fresh(), NMPattern(1, 4)

    def seen(_name, weight, step):
        keep = slow_keep(weight, pattern)
        factor = 0.01 ** (step / 9) if step < 9 else 0.0
        return (keep + (1 - keep) * factor) * weight

    dense = reference(copy.deepcopy(net), steps, seen)
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "1:4", "decaying-mask", total_steps=12, mask_decay="exponential")
    train(net, optimizer, steps)
    check(net, sparsifier, dense, lambda name: seen(name, dense[name], steps))
    assert set(sparsifier.patterns()) == (set(SPARSE) if steps >= 9 else set())


def test_a_structure_decays_on_time_where_masks_are_held_between_steps():
    net = fresh()
    optimizer = sgd(net)
    sparsifier = sparsify(
        net, optimizer, "1:4", "decaying-mask", total_steps=12, mask_decay="structured", mask_update_interval=100
    )
    kept = []
    for x, y in batches_of(STEPS):
        kept.append(int((net.fc.weight != 0).unflatten(1, (-1, 4)).sum(2).max()))
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert kept == KEPT_OF["1:4"]
    assert set(sparsifier.patterns()) == set(SPARSE)


def test_decay_warmup_lets_lambda_grow():
    net, pattern = fresh(), NMPattern(2, 4)
    dense = reference(
        copy.deepcopy(net),
        STEPS,
        lambda _name, weight, _step: slow_keep(weight, pattern) * weight,
        lambda step: 0.1 * min(1.0, step / 5),
        pattern,
    )
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4", "sr-ste", decay=0.1, total_steps=STEPS, decay_warmup=0.5)
    train(net, optimizer, STEPS)
    check(net, sparsifier, dense, lambda name: slow_keep(dense[name], pattern) * dense[name])


FADING = [
    {"method": "s-ste"},
    {"method": "decaying-mask"},
    {"method": "decaying-mask", "mask_decay": "exponential"},
    {"method": "decaying-mask", "mask_decay": "structured"},
]


@pytest.mark.parametrize("options", FADING)
@pytest.mark.parametrize("first", [2, 7, 8])
def test_a_resumed_run_is_the_same_bit_for_bit(options, first):
    data = list(batches_of(10))

    def steps(net, optimizer, part):
        for x, y in part:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()

    net = fresh()
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "1:4", **options, total_steps=10)
    steps(net, optimizer, data[:first])
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    steps(net, optimizer, data[first:])
    torch.manual_seed(9)
    other = Net().double()
    other_optimizer = sgd(other)
    resumed = sparsify(other, other_optimizer, "1:4", **options, total_steps=10)
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    steps(other, other_optimizer, data[first:])
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for name, value in sparsifier.dense_weights().items():
        assert torch.equal(value, resumed.dense_weights()[name]), name
    assert resumed.record_sad() == sparsifier.record_sad()


@pytest.mark.parametrize("options", FADING)
def test_frozen_masks_conform_at_once_and_stay(options):
    net = fresh()
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4", **options, total_steps=100)
    train(net, optimizer, 3)
    sparsifier.freeze_masks()
    masks = sparsifier.masks()
    train(net, optimizer, 3)
    assert set(sparsifier.patterns()) == set(SPARSE)
    assert all(mask.double().mean() == 0.5 for mask in masks.values())
    for name, mask in sparsifier.masks().items():
        assert torch.equal(mask, masks[name])
        assert net.state_dict()[name][~mask].abs().max() == 0


@pytest.mark.parametrize("options", FADING)
def test_a_skipped_step_changes_nothing_and_scaling_is_no_matter(options):
    net = fresh().float()
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4", **options, total_steps=8)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    weights, dense = copy.deepcopy(net.state_dict()), sparsifier.dense_weights()
    x, y = next(batches_of(1))
    scaler.scale(F.cross_entropy(net(x.float()), y) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert sparsifier.steps == 0
    for name, value in net.state_dict().items():
        assert torch.equal(value, weights[name])
    for name, value in sparsifier.dense_weights().items():
        assert torch.equal(value, dense[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "decaying-mask"}, "total_steps"),
        ({"decay_warmup": 0.5}, "total_steps"),
        ({"decay_warmup": 1.5, "total_steps": 4}, "share"),
        ({"method": "s-ste", "decay_warmup": 0.5, "total_steps": 4}, "sr-ste"),
        ({"method": "s-ste", "mask_update_interval": 2}, "mask_update_interval"),
        ({"method": "sr-ste", "mask_decay": "structured"}, "mask_decay"),
        ({"method": "decaying-mask", "mask_decay": "cosine", "total_steps": 4}, "linear, exponential, structured"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, message):
    net = fresh()
    with pytest.raises(ConfigError, match=message):
        sparsify(net, sgd(net), **options)
