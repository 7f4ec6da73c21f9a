"""SR-STE must come out the same under whatever the training loop does around it."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from test_sparsifier import Net, batches_of, paper_reference, sgd, train
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern
from nm2trt.training import nm_mask, sparsify

DECAY = 1e-2


def fresh(dtype=torch.float64):
    torch.manual_seed(0)
    return Net().to(dtype)


def plain_run(steps=6, dtype=torch.float64, **options):
    net = fresh(dtype)
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY, **options)
    for x, y in batches_of(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x.to(dtype)), y).backward()
        optimizer.step()
    return net, sparsifier


def assert_same(one, two, tolerance=1e-12):
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=0, atol=tolerance, msg=name)


def test_threads_do_not_change_a_bit(monkeypatch):
    alone, record = plain_run()
    monkeypatch.setattr("nm2trt.training.projection._PARALLEL_FROM_WEIGHTS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    together, other = plain_run()
    assert_same(alone, together, 0)
    assert record.record_sad() == other.record_sad()


def test_channels_last_changes_nothing_even_after_the_fact():
    plain, _ = plain_run()
    net = fresh()
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    net.to(memory_format=torch.channels_last)
    train(net, optimizer, 6)
    assert_same(plain, net)
    assert sparsifier.residuals()["conv.weight"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.not_quick
def test_a_compiled_model_keeps_its_plain_names():
    net = fresh()
    compiled = torch.compile(net, backend="eager")
    optimizer = sgd(net)
    sparsifier = sparsify(compiled, optimizer, "2:4", decay=DECAY)
    assert set(sparsifier.masks()) == {"conv.weight", "fc.weight"}
    for x, y in batches_of(6):
        optimizer.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        optimizer.step()
    assert_same(plain_run()[0], net)


def test_clipping_sees_the_task_gradient_only():
    """The decay enters after clipping: the reference clips by hand, then adds it."""
    net = fresh()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    x, y = next(batches_of(1))
    before = {name: value.clone() for name, value in sparsifier.dense_weights().items()}
    residuals = {name: value.clone() for name, value in sparsifier.residuals().items()}
    F.cross_entropy(net(x), y).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 0.01)
    gradients = {name: dict(net.named_parameters())[name].grad.clone() for name in before}
    optimizer.step()
    for name, dense in sparsifier.dense_weights().items():
        expected = before[name] - 0.1 * (gradients[name] + DECAY * residuals[name])
        torch.testing.assert_close(dense, expected, rtol=0, atol=1e-12)


def test_a_step_that_the_loss_scaler_skips_changes_nothing():
    net = fresh(torch.float32)
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    weights = copy.deepcopy(net.state_dict())
    residuals = {name: value.clone() for name, value in sparsifier.residuals().items()}
    x, y = next(batches_of(1))
    scaler.scale(F.cross_entropy(net(x.float()), y) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert sparsifier.steps == 0
    for name, value in net.state_dict().items():
        assert torch.equal(value, weights[name])
    for name, value in sparsifier.residuals().items():
        assert torch.equal(value, residuals[name])


def test_a_loss_scaler_does_not_scale_the_decay():
    plain, _ = plain_run(dtype=torch.float32)
    net = fresh(torch.float32)
    optimizer = sgd(net)
    sparsify(net, optimizer, "2:4", decay=DECAY)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for x, y in batches_of(6):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(net(x.float()), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert_same(plain, net, 1e-5)


def test_bfloat16_autocast_trains_and_conforms():
    net = fresh(torch.float32)
    optimizer = sgd(net)
    sparsify(net, optimizer, "2:4")
    for x, y in batches_of(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(net(x.float()), y)
        loss.backward()
        optimizer.step()
    assert (net.fc.weight != 0).unflatten(1, (-1, 4)).sum(2).max() == 2


def test_a_parameter_that_is_frozen_for_a_while_keeps_both_parts():
    net = fresh()
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    train(net, optimizer, 2)
    net.fc.weight.requires_grad_(False)
    net.fc.weight.grad = None
    dense = sparsifier.dense_weights()["fc.weight"]
    train(net, optimizer, 3)
    assert torch.equal(sparsifier.dense_weights()["fc.weight"], dense)
    net.fc.weight.requires_grad_(True)
    train(net, optimizer, 1)
    assert not torch.equal(sparsifier.dense_weights()["fc.weight"], dense)


def test_mask_update_interval_k_steps_moves_masks_only_then():
    net = fresh()
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4", decay=0.5, mask_update_interval=3)
    moved = []
    for _ in range(9):
        before = sparsifier.masks()
        train(net, optimizer, 1)
        moved.append(any(not torch.equal(before[name], mask) for name, mask in sparsifier.masks().items()))
        dense = sparsifier.dense_weights()["fc.weight"]
        assert torch.equal(net.fc.weight.detach(), dense * sparsifier.masks()["fc.weight"])
    assert [index for index, value in enumerate(moved) if value] == [2, 5, 8]
    assert torch.equal(sparsifier.masks()["fc.weight"], nm_mask(dense, NMPattern(2, 4), 1))


def test_mask_update_interval_zero_is_refused():
    with pytest.raises(ConfigError, match="mask_update_interval = 0"):
        sparsify(fresh(), torch.optim.SGD(fresh().parameters(), lr=0.1), mask_update_interval=0)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_works_and_warns_with_the_paper(optimizer):
    net = fresh()
    with pytest.warns(UserWarning, match=r"STEP \(Lu et al., ICML 2023\)"):
        sparsify(net, optimizer(net.parameters(), lr=1e-3), "2:4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(net, sgd(net), "2:4").remove_hooks()
        sparsify(net, optimizer(net.parameters(), lr=1e-3), "2:4", "asp")


def test_adamw_sees_the_gradient_of_the_paper():
    """One step of AdamW from zero moments moves every weight by lr * sign(g), after decoupled weight decay."""
    net = fresh()
    lr, weight_decay = 1e-3, 1e-2
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay, eps=1e-30)
    with pytest.warns(UserWarning, match="STEP"):
        sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    before, residual = sparsifier.dense_weights()["fc.weight"], sparsifier.residuals()["fc.weight"].clone()
    x, y = next(batches_of(1))
    F.cross_entropy(net(x), y).backward()
    gradient = net.fc.weight.grad + DECAY * residual
    optimizer.step()
    expected = before * (1 - lr * weight_decay) - lr * gradient.sign()
    torch.testing.assert_close(sparsifier.dense_weights()["fc.weight"], expected, rtol=0, atol=1e-12)


def test_attention_projections_are_the_papers_update_too():
    """nn.MultiheadAttention packs q, k and v in one parameter that is no Linear."""
    torch.manual_seed(0)
    net = nn.MultiheadAttention(16, 2, batch_first=True, dtype=torch.float64)
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4", layer_patterns={"": "2:4", "out_proj": "2:4"})
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        net(x, x, x)[0].square().sum().backward()
        optimizer.step()
    assert set(sparsifier.masks()) == {"in_proj_weight", "out_proj.weight"}
    assert (net.in_proj_weight != 0).unflatten(1, (-1, 4)).sum(2).max() == 2


def test_ten_steps_with_the_threads_and_a_seed_still_equal_the_paper(monkeypatch):
    monkeypatch.setattr("nm2trt.training.projection._PARALLEL_FROM_WEIGHTS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    net = fresh()
    dense, _ = paper_reference(copy.deepcopy(net), NMPattern(2, 4), DECAY, 10)
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4", decay=DECAY)
    train(net, optimizer, 10)
    for name, value in sparsifier.dense_state_dict(net).items():
        torch.testing.assert_close(value, torch.from_numpy(dense[name]), rtol=0, atol=1e-9)
