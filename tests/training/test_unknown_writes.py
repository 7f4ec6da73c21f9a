"""Arithmetic on parameters between steps: it acts on W where that is known, and is refused where it is not."""

import pytest
import torch
import torch.nn.functional as F
from plain_training import (
    WEIGHTS,
    assert_split,
    batches_of,
    by_mul,
    clamp,
    hold_still,
    mlp,
    most,
    one_step,
    revive_some,
    started,
)
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from nm2trt.errors import ConfigError
from nm2trt.training import sparsify


def by_data_mul(net, factor):
    for parameter in net.parameters():
        parameter.data.mul_(factor)


def by_data_of_a_product(net, factor):
    for parameter in net.parameters():
        parameter.data = parameter.data * factor


def by_subtraction(net, factor):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.sub_((1 - factor) * parameter)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [by_mul, by_data_mul, by_data_of_a_product, by_subtraction])
@pytest.mark.parametrize("factor", [0.7, 0.9995, -1.0])
def test_decay_by_hand_acts_on_w(scale, factor, dtype):
    """Against the same training of the dense weights, masks and gradients by a loop of its own."""
    net = mlp(dtype=dtype)
    dense = {name: value.detach().clone() for name, value in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsifier = sparsify(net, optimizer, "2:4", decay=1e-2)
    for x, y in batches_of(5, dtype=dtype):
        one_step(net, optimizer, x, y)
        scale(net, factor)
        seen = {}
        for name, value in dense.items():
            keep = torch.ones_like(value)
            if name in WEIGHTS:
                best = value.abs().unflatten(1, (-1, 4)).topk(2, dim=2).indices
                keep = torch.zeros_like(value).unflatten(1, (-1, 4)).scatter_(2, best, 1.0).flatten(1)
            seen[name] = ((value * keep).requires_grad_(), keep)
        loss = F.cross_entropy(
            torch.func.functional_call(net, {name: value for name, (value, _) in seen.items()}, (x,)), y
        )
        gradients = torch.autograd.grad(loss, [value for value, _ in seen.values()])
        for (name, (_, keep)), gradient in zip(seen.items(), gradients, strict=True):
            decay = 1e-2 * (1 - keep) * dense[name]
            dense[name] = factor * (dense[name] - 0.1 * (gradient + decay))
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    for name in WEIGHTS:
        torch.testing.assert_close(sparsifier.dense_weights()[name], dense[name], rtol=0, atol=tolerance)


def scale_rows(net):
    with torch.no_grad():
        net[0].weight.div_(net[0].weight.norm(dim=1, keepdim=True))


def shift_kept(net):
    with torch.no_grad():
        net[0].weight.add_(0.01 * net[0].weight.sign())


@pytest.mark.parametrize("write", [clamp, scale_rows, shift_kept, revive_some])
def test_what_would_have_changed_pruned_weights_in_an_unknown_way_is_refused(write):
    net, optimizer, sparsifier = started()
    write(net)
    for act in (lambda: one_step(net, optimizer, *batches_of(1)[0]), sparsifier.patterns, sparsifier.state_dict):
        with pytest.raises(
            ConfigError, match=r"layer 0\.weight.*: .* outside of the optimizer's step.*dense_parameters"
        ):
            act()
    sparsifier.take_weights()
    one_step(net, optimizer, *batches_of(1)[0])
    assert_split(net, sparsifier)


@pytest.mark.parametrize("write", [clamp, scale_rows, revive_some])
@pytest.mark.parametrize("freeze", [False, True])
def test_inside_dense_parameters_the_same_acts_on_w(write, freeze):
    net, optimizer, sparsifier = started()
    if freeze:
        sparsifier.freeze_masks()
    expected = mlp()
    expected.load_state_dict({**net.state_dict(), **sparsifier.dense_weights()})
    write(expected)
    with sparsifier.dense_parameters():
        assert most(net[0].weight) == 4
        write(net)
    for name in WEIGHTS:
        torch.testing.assert_close(
            sparsifier.dense_weights()[name], expected.get_parameter(name).detach(), rtol=0, atol=0
        )
        assert most(net.get_parameter(name)) == 2
    one_step(net, optimizer, *batches_of(1)[0])
    assert_split(net, sparsifier)


def test_an_exception_inside_dense_parameters_leaves_n_m_weights():
    net, _, sparsifier = started()
    before = sparsifier.dense_weights()
    with pytest.raises(RuntimeError, match="mine"), sparsifier.dense_parameters():
        raise RuntimeError("mine")
    assert_split(net, sparsifier)
    assert torch.equal(sparsifier.dense_weights()["0.weight"], before["0.weight"])


def test_weights_swapped_away_and_back_are_the_same_weights():
    """An average's weights for an evaluation, a perturbation that is taken back, a vector and back."""
    net, optimizer, sparsifier = started()
    before = sparsifier.dense_weights()
    hold_still(optimizer)
    backup = [parameter.detach().clone() for parameter in net.parameters()]
    for parameter in net.parameters():
        parameter.data.copy_(torch.randn_like(parameter))
    for parameter, value in zip(net.parameters(), backup, strict=True):
        parameter.data.copy_(value)
    one_step(net, optimizer, *batches_of(1)[0])
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn_like(parameter)
            parameter.add_(noise).sub_(noise)  # but for rounding
    one_step(net, optimizer, *batches_of(1)[0])
    vector_to_parameters(parameters_to_vector(net.parameters()).clone(), net.parameters())
    one_step(net, optimizer, *batches_of(1)[0])
    for name in WEIGHTS:
        torch.testing.assert_close(sparsifier.dense_weights()[name], before[name], rtol=0, atol=1e-14)
    assert_split(net, sparsifier)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_residual_follows_another_dtype(dtype):
    net, optimizer, sparsifier = started(dtype=torch.float32)
    expected = {name: value.to(dtype) for name, value in sparsifier.dense_weights().items()}
    net.to(dtype)
    for name in WEIGHTS:
        assert torch.equal(sparsifier.dense_weights()[name], expected[name])
        assert sparsifier.residuals()[name].dtype == dtype
    one_step(net, optimizer, *batches_of(1, dtype=dtype)[0])
    assert_split(net, sparsifier)


def test_a_cast_and_loaded_weights_between_two_steps():
    net, optimizer, sparsifier = started(dtype=torch.float32)
    net.bfloat16()
    state = {name: value.bfloat16() for name, value in mlp(seed=3).state_dict().items()}
    net.load_state_dict(state)
    hold_still(optimizer)
    one_step(net, optimizer, *batches_of(1, dtype=torch.bfloat16)[0])
    assert torch.equal(sparsifier.dense_weights()["0.weight"], state["0.weight"])
