"""What test_circumstances.py holds for SR-STE, for the methods after it: each under what the loop does around it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_sparsifier import Net, batches_of
from torch import nn

from nm2trt.training import sparsify

METHODS = ("s-ste", "decaying-mask", "exponential", "structured", "step")
"""The middle two are other decays of "decaying-mask"."""
STEPS = 8
"""Fading ends after 4, STEP switches after 4: both sides of each are seen."""
TOTAL = 6


def fresh(dtype=torch.float64):
    torch.manual_seed(0)
    return Net().to(dtype)


def optimizer_for(method, net, **options):
    if method == "step":
        options = {name: value for name, value in options.items() if name not in ("momentum", "nesterov")}
        return torch.optim.AdamW(net.parameters(), **{"lr": 1e-2, "weight_decay": 1e-2, "eps": 1e-4} | options)
    return torch.optim.SGD(net.parameters(), **{"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2} | options)


def made(method, dtype=torch.float64, **options):
    net = fresh(dtype)
    optimizer = optimizer_for(method, net, **options)
    return net, optimizer, sparse(net, optimizer, method)


def sparse(net, optimizer, method, decay=0.1):
    decays = {"exponential", "structured"} & {method}
    return sparsify(
        net,
        optimizer,
        "2:4",
        "decaying-mask" if decays else method,
        mask_decay=method if decays else "linear",
        decay=decay,
        total_steps=TOTAL,
    )


def loss_of(net, x, y):
    return F.cross_entropy(net(x.to(net.fc.weight.dtype)), y)


def plain_run(method, dtype=torch.float64, **options):
    net, optimizer, sparsifier = made(method, dtype, **options)
    for x, y in batches_of(STEPS):
        optimizer.zero_grad()
        loss_of(net, x, y).backward()
        optimizer.step()
    return net, sparsifier


def assert_same(one, two, tolerance=1e-11):
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=0, atol=tolerance, msg=name)


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


def test_masks_move_and_the_end_conforms(method):
    net, sparsifier = plain_run(method)
    assert sparsifier.record_sad().total.start > 0
    assert set(sparsifier.patterns()) == {"conv.weight", "fc.weight"}
    assert (net.fc.weight != 0).unflatten(1, (-1, 4)).sum(2).max() == 2


def test_threads_do_not_change_a_bit(method, monkeypatch):
    alone, record = plain_run(method)
    monkeypatch.setattr("nm2trt.training.projection._PARALLEL_FROM_WEIGHTS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    together, other = plain_run(method)
    assert_same(alone, together, 0)
    assert record.record_sad() == other.record_sad()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("at", [0, 2, 5])
def test_channels_last_changes_nothing_even_after_the_fact(method, at):
    plain, _ = plain_run(method)
    net, optimizer, _ = made(method)
    for step, (x, y) in enumerate(batches_of(STEPS)):
        if step == at:
            net.to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        loss_of(net, x, y).backward()
        optimizer.step()
    assert_same(plain, net)


def test_a_compiled_model_is_the_same(method):
    plain, _ = plain_run(method)
    net = fresh()
    optimizer = optimizer_for(method, net)
    compiled = torch.compile(net, backend="eager")
    sparse(compiled, optimizer, method)
    for x, y in batches_of(STEPS):
        optimizer.zero_grad()
        loss_of_compiled = F.cross_entropy(compiled(x), y)
        loss_of_compiled.backward()
        optimizer.step()
    assert_same(plain, net)


@pytest.mark.parametrize("fast", [{"foreach": True}, {"fused": True}])
def test_the_optimizers_fast_ways_agree(method, fast):
    assert_same(plain_run(method)[0], plain_run(method, **fast)[0], 1e-10)


def test_accumulated_micro_batches_are_one_batch(method):
    plain, _ = plain_run(method)
    net, optimizer, sparsifier = made(method)
    for x, y in batches_of(STEPS):
        optimizer.zero_grad()
        for part in range(3):
            (loss_of(net, x.chunk(3)[part], y.chunk(3)[part]) / 3).backward()
        optimizer.step()
    assert_same(plain, net)
    assert sparsifier.steps == STEPS


def test_clipping_that_does_not_bite_changes_nothing_and_sees_the_task_gradient(method):
    plain, _ = plain_run(method)
    net, optimizer, _ = made(method)
    for x, y in batches_of(STEPS):
        optimizer.zero_grad()
        loss_of(net, x, y).backward()
        task = torch.autograd.grad(loss_of(net, x, y), list(net.parameters()))
        norm = torch.stack([gradient.norm() for gradient in task]).norm()
        torch.testing.assert_close(nn.utils.clip_grad_norm_(net.parameters(), 1e9), norm, rtol=1e-9, atol=0)
        optimizer.step()
    assert_same(plain, net)


def test_a_loss_scaler_changes_nothing_but_rounding(method):
    # Adam divides by the root of squares, so rounding weighs more.
    plain, _ = plain_run(method, torch.float32)
    net, optimizer, _ = made(method, torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for x, y in batches_of(STEPS):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, x, y)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert_same(plain, net, 1e-5)


@pytest.mark.parametrize("at", [0, 6])
def test_a_step_that_the_loss_scaler_skips_changes_nothing(method, at):
    net, optimizer, sparsifier = made(method, torch.float32)
    data = list(batches_of(at + 1))
    for x, y in data[:-1]:
        optimizer.zero_grad()
        loss_of(net, x, y).backward()
        optimizer.step()
    before = copy.deepcopy((net.state_dict(), sparsifier.dense_weights(), optimizer.state_dict()["state"]))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer.zero_grad()
    scaler.scale(loss_of(net, *data[-1]) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert sparsifier.steps == at
    after = (net.state_dict(), sparsifier.dense_weights(), optimizer.state_dict()["state"])
    for old, new in zip(before[:2], after[:2], strict=True):
        for name, value in old.items():
            assert torch.equal(new[name], value), name
    for index, values in before[2].items():
        for key, value in values.items():
            assert value is None or torch.equal(after[2][index][key], value), key


def test_bfloat16_autocast_trains_and_conforms(method):
    net, optimizer, _ = made(method, torch.float32)
    for x, y in batches_of(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(net(x.float()), y)
        loss.backward()
        optimizer.step()
    assert torch.isfinite(net.fc.weight).all()
    assert (net.fc.weight != 0).unflatten(1, (-1, 4)).sum(2).max() == 2


def test_weights_in_bfloat16_train_and_conform(method):
    net, _ = plain_run(method, torch.bfloat16)
    assert torch.isfinite(net.fc.weight).all()
    assert (net.fc.weight != 0).unflatten(1, (-1, 4)).sum(2).max() <= 2


def test_weight_decay_acts_on_the_dense_weights(method):
    """Without a gradient, only the decay moves W, and all of W by the same factor."""
    net = fresh()
    optimizer = optimizer_for(method, net, lr=0.1, weight_decay=0.1, momentum=0.0)
    sparsifier = sparse(net, optimizer, method, decay=0.0)
    before = sparsifier.dense_weights()
    for _ in range(3):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    for name, value in sparsifier.dense_weights().items():
        torch.testing.assert_close(value, before[name] * 0.99**3, rtol=1e-12, atol=0)


def test_a_parameter_that_is_frozen_for_a_while_keeps_its_dense_weights(method):
    net, optimizer, sparsifier = made(method)
    data = list(batches_of(STEPS + 1))
    net.fc.weight.requires_grad_(True)
    for index, (x, y) in enumerate(data):
        if index == 2:
            net.fc.weight.requires_grad_(False)
            net.fc.weight.grad = None
            dense = sparsifier.dense_weights()["fc.weight"]
        if index == 6:
            assert torch.equal(sparsifier.dense_weights()["fc.weight"], dense)
            net.fc.weight.requires_grad_(True)
        optimizer.zero_grad()
        loss_of(net, x, y).backward()
        optimizer.step()
    assert not torch.equal(sparsifier.dense_weights()["fc.weight"], dense)
    assert (net.fc.weight != 0).unflatten(1, (-1, 4)).sum(2).max() == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="missing: a CUDA GPU")
def test_a_state_that_was_read_onto_the_cpu_goes_on_on_a_gpu(method):
    net, optimizer, sparsifier = made(method, torch.float32)
    data = list(batches_of(STEPS))
    for x, y in data[:5]:
        optimizer.zero_grad()
        loss_of(net, x, y).backward()
        optimizer.step()
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    other = fresh(torch.float32).cuda()
    other_optimizer = optimizer_for(method, other)
    resumed = sparse(other, other_optimizer, method)
    for target, state in zip((other, other_optimizer, resumed), saved, strict=True):
        target.load_state_dict(state)
    for entry in resumed.state_dict()["layers"].values():
        assert {value.device.type for value in entry.values() if isinstance(value, torch.Tensor)} == {"cuda"}
    for x, y in data[5:]:
        for one, stepped in ((net, optimizer), (other, other_optimizer)):
            stepped.zero_grad()
            loss_of(one, x.to(one.fc.weight.device), y.to(one.fc.weight.device)).backward()
            stepped.step()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name].cpu(), value, rtol=0, atol=1e-4, msg=name)
