"""What an optimizer is given as the gradient, and what `.grad` is afterwards."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from plain_training import WEIGHTS, batches_of, mlp, one_step, started
from torch import nn

from nm2trt.training import sparsify


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam"])
@pytest.mark.parametrize("fast", [{}, {"foreach": True}, {"foreach": False}])
def test_maximizing_the_negative_is_minimizing(name, fast):
    kind, results = getattr(torch.optim, name), []
    for maximize in (False, True):
        net = mlp()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = kind(net.parameters(), lr=0.02, maximize=maximize, **fast)
            sparsifier = sparsify(net, optimizer, "2:4", decay=0.05)
        for x, y in batches_of(6):
            optimizer.zero_grad()
            (F.cross_entropy(net(x), y) * (-1 if maximize else 1)).backward()
            optimizer.step()
        results.append(sparsifier.dense_weights())
    for weight in WEIGHTS:
        torch.testing.assert_close(results[0][weight], results[1][weight], rtol=0, atol=1e-12)


def test_only_the_groups_that_maximize_are_negated():
    net, other = mlp(), mlp()
    results = []
    for one, flags in ((net, (False, True)), (other, (False, False))):
        groups = [
            {"params": one[index].parameters(), "maximize": flag} for index, flag in zip((0, 2), flags, strict=True)
        ]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        sparsifier = sparsify(one, optimizer, "2:4", decay=0.3)
        residuals = {name: value.clone() for name, value in sparsifier.residuals().items()}
        before = sparsifier.dense_weights()
        for parameter in one.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for name, weight in sparsifier.dense_weights().items():
            torch.testing.assert_close(weight, before[name] - 0.1 * 0.3 * residuals[name], rtol=0, atol=1e-15)
        results.append(sparsifier)


@pytest.mark.parametrize("phase", ["growing", "frozen", "asp"])
@pytest.mark.parametrize("fast", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_the_gradient_is_the_same_object_with_the_same_bits_after_the_step(phase, fast):
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, **fast)
    sparsifier = sparsify(
        net, optimizer, "2:4", "asp" if phase == "asp" else "sr-ste", **({} if phase == "asp" else {"decay": 0.5})
    )
    if phase == "frozen":
        sparsifier.freeze_masks()
    for x, y in batches_of(3):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        gradients = [(parameter.grad, parameter.grad.clone()) for parameter in net.parameters()]
        optimizer.step()
        for parameter, (gradient, values) in zip(net.parameters(), gradients, strict=True):
            assert parameter.grad is gradient
            assert torch.equal(gradient, values)


def test_gradients_carried_over_many_steps_hold_the_tasks_only():
    """Accumulated without zero_grad: the sum of the task's gradients, whatever the decay is."""
    net, optimizer, _ = started(steps=0, lr=0.0, decay=0.7)
    alone = mlp()
    alone.load_state_dict(net.state_dict())
    for x, y in batches_of(4):
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        F.cross_entropy(alone(x), y).backward()
    for one, other in zip(net.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-14)


def test_a_fused_optimizer_leaves_the_unscaled_gradient_as_without_us():
    found = []
    for ours in (False, True):
        net = mlp()
        if ours:
            sparse = net
        else:
            sparse = mlp()
            sparsify(sparse, torch.optim.SGD(sparse.parameters(), lr=0.1)).remove_hooks()
        optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1, fused=True)
        if ours:
            sparsify(sparse, optimizer, decay=0.5)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.zeros(())
        x, y = batches_of(1)[0]
        (8.0 * F.cross_entropy(sparse(x), y)).backward()
        optimizer.step()
        found.append([parameter.grad for parameter in sparse.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-15)


class Remembers(torch.optim.Optimizer):
    """Keeps the gradient of the step before without copying it, as `zero_grad` to None allows."""

    def __init__(self, parameters, lr, how):
        super().__init__(parameters, {"lr": lr})
        self.how = how

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                before = self.state[p].get("before")
                gradient = {"itself": p.grad, "data": p.grad.data, "view": p.grad.view(-1).view_as(p)}[self.how]
                p.sub_(p.grad if before is None else p.grad - 0.5 * before, alpha=group["lr"])
                self.state[p]["before"] = gradient.clone() if self.how == "copy" else gradient


@pytest.mark.parametrize("how", ["itself", "data", "view"])
def test_an_optimizer_may_keep_the_gradient_that_it_was_given(how):
    results = []
    for kind in (how, "copy"):
        net = mlp()
        optimizer = (
            Remembers(net.parameters(), 0.1, kind) if kind != "copy" else Copies(net.parameters(), 0.1, "itself")
        )
        sparsifier = sparsify(net, optimizer, "2:4", decay=0.3)
        for x, y in batches_of(5):
            one_step(net, optimizer, x, y)
        results.append(sparsifier.dense_weights())
    for name in WEIGHTS:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=0, atol=1e-14)


class Copies(Remembers):
    """The same with a copy."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["before"] = self.state[p]["before"].clone()


class Clears(torch.optim.SGD):
    """Ends its step with gradients of zero, or none."""

    how = "zero"

    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                if self.how == "zero":
                    p.grad.zero_()
                else:
                    p.grad = None


@pytest.mark.parametrize("how", ["zero", "none"])
def test_a_step_that_clears_gradients_clears_the_tasks(how):
    net = mlp()
    optimizer = Clears(net.parameters(), lr=0.1)
    optimizer.how = how
    sparsify(net, optimizer, "2:4", decay=0.3)
    x, y = batches_of(1)[0]
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
    for parameter in net.parameters():
        assert parameter.grad is None if how == "none" else not parameter.grad.any()


def test_a_parameter_without_a_gradient_is_left_alone():
    _, optimizer, sparsifier = started(decay=0.5)
    optimizer.zero_grad()
    before = sparsifier.dense_weights()
    optimizer.step()
    for name in WEIGHTS:
        assert torch.equal(sparsifier.dense_weights()[name], before[name])


def test_a_gradient_in_another_layout_is_altered_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 4)).double()
    other = copy.deepcopy(net)
    results = []
    for one, layout in ((net, torch.contiguous_format), (other, torch.channels_last)):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        sparsifier = sparsify(one, optimizer, "2:4", decay=0.5)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for parameter in one.parameters():
                gradient = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
                parameter.grad = gradient.contiguous(memory_format=layout) if gradient.dim() == 4 else gradient
            optimizer.step()
        results.append(sparsifier.dense_weights()["0.weight"])
    torch.testing.assert_close(*results, rtol=0, atol=1e-14)
