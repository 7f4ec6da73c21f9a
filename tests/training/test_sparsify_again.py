"""Sparsified again, copied, pickled, compiled, scheduled and removed."""

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from plain_training import DECAY, PlainLookahead, assert_equal, assert_split, batches_of, mlp, most, one_step
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.training import sparsify


def test_sparsify_again_goes_on_from_w():
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    first = sparsify(net, optimizer, "2:4", decay=DECAY)
    data = batches_of(6)
    for x, y in data[:3]:
        one_step(net, optimizer, x, y)
    dense = first.dense_weights()
    second = sparsify(net, optimizer, "2:4", decay=DECAY)
    assert_equal(second.dense_weights(), dense)
    for x, y in data[3:]:
        one_step(net, optimizer, x, y)
    assert (first.steps, second.steps) == (3, 3)
    for ask in (first.patterns, first.state_dict, first.record_sad):
        with pytest.raises(ConfigError, match="a later call of sparsify has taken these layers over"):
            ask()
    first.remove_hooks()
    once = mlp()
    optimizer = torch.optim.SGD(once.parameters(), lr=0.1, momentum=0.9)
    only = sparsify(once, optimizer, "2:4", decay=DECAY)
    for x, y in data:
        one_step(once, optimizer, x, y)
    assert_equal(second.dense_weights(), only.dense_weights())


@pytest.mark.parametrize("keep_first", [True, False])
def test_sparsify_again_with_another_optimizer_and_pattern(keep_first):
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    first = sparsify(net, optimizer, "2:4", decay=DECAY)
    for x, y in batches_of(3):
        one_step(net, optimizer, x, y)
    dense = first.dense_weights()
    if not keep_first:
        del first, optimizer
    other = torch.optim.SGD(net.parameters(), lr=0.1)
    second = sparsify(net, other, "1:4")
    assert_equal(second.dense_weights(), dense)
    one_step(net, other, *batches_of(1)[0])
    assert (net[0].weight != 0).unflatten(1, (-1, 4)).sum(2).max() == 1


def test_two_sparsifiers_with_an_optimizer_each_share_a_network():
    results = []
    for split in (True, False):
        net = mlp()
        if split:
            optimizers = [torch.optim.SGD(net[0].parameters(), lr=0.1), torch.optim.SGD(net[2:].parameters(), lr=0.1)]
            ours = [
                sparsify(net, optimizers[0], "2:4", decay=DECAY, exclude=["2", "4"]),
                sparsify(net, optimizers[1], "2:4", decay=DECAY, exclude=["0", "4"]),
            ]
        else:
            optimizers = [torch.optim.SGD(net.parameters(), lr=0.1)]
            ours = [sparsify(net, optimizers[0], "2:4", decay=DECAY)]
        for x, y in batches_of(4):
            net.zero_grad()
            F.cross_entropy(net(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
        results.append({name: value for one in ours for name, value in one.dense_weights().items()})
    assert_equal(*results)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_copy_of_all_three_trains_n_m_and_leaves_the_original_alone(wrapped):
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    optimizer = PlainLookahead(optimizer) if wrapped else optimizer
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    data = batches_of(6)
    for x, y in data[:3]:
        one_step(net, optimizer, x, y)
    dense = sparsifier.dense_weights()
    copies = copy.deepcopy({"s": sparsifier, "o": optimizer, "n": net})
    for x, y in data[3:]:
        one_step(copies["n"], copies["o"], x, y)
        assert_split(copies["n"], copies["s"])
    assert_equal(sparsifier.dense_weights(), dense)
    assert (sparsifier.steps, copies["s"].steps) == (3, 6)
    for x, y in data[3:]:
        one_step(net, optimizer, x, y)
    assert_equal(sparsifier.dense_weights(), copies["s"].dense_weights())


def test_a_sparsifier_is_not_pickled():
    net = mlp()
    sparsifier = sparsify(net, torch.optim.SGD(net.parameters(), lr=0.1))
    for act in (lambda one: torch.save(one, io.BytesIO()), copy.copy):
        with pytest.raises(ConfigError, match="cannot be pickled"):
            act(sparsifier)


@pytest.mark.not_quick
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_compiled_step_is_the_plain_one(backend, whole):
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(32, 16), nn.Linear(16, 4)).double()
    compiled = copy.deepcopy(plain)
    results = []
    for net in (plain, compiled):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
        step = optimizer.step
        if net is compiled:
            step = torch.compile(optimizer.step if whole else lambda o=optimizer: o.step(), backend=backend)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(4, 8, 2, 2, dtype=torch.float64, generator=generator)).square().sum().backward()
            step()
        assert sparsifier.steps == 3
        results.append(sparsifier.dense_weights())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=0, atol=1e-12)


def test_a_schedule_made_before_or_after_does_not_warn():
    for before in (True, False):
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1) if before else None
            sparsifier = sparsify(net, optimizer, "2:4")
            schedule = schedule or torch.optim.lr_scheduler.StepLR(optimizer, 1)
            for x, y in batches_of(3):
                one_step(net, optimizer, x, y)
                schedule.step()
        assert sparsifier.steps == 3
        sparsifier.remove_hooks()
        one_step(net, optimizer, *batches_of(1)[0])
        assert sparsifier.steps == 3
        assert most(net[0].weight) > 2


def test_remove_gives_the_optimizer_its_step_back():
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsify(net, optimizer, "2:4").remove_hooks()
    assert "step" not in vars(optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert not any(module._load_state_dict_post_hooks for module in net.modules())
