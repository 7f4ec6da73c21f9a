"""STEP against a slow float64 loop over its published rule, with torch's own Adam and AdamW."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_sparsifier import Net, batches_of, forward_with, slow_keep

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern
from nm2trt.training import sparsify

SPARSE = ("conv.weight", "fc.weight")
LR, BETA1, BETA2, WEIGHT_DECAY = 1e-2, 0.9, 0.99, 1e-2
STEPS = 12


def fresh(dtype=torch.float64):
    torch.manual_seed(0)
    return Net().to(dtype)


def adamw(net, **options):
    options = {"lr": LR, "betas": (BETA1, BETA2), "weight_decay": WEIGHT_DECAY, "eps": 1e-8} | options
    return torch.optim.AdamW(net.parameters(), **options)


def train(net, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(x.to(net.fc.weight.dtype)), y).backward()
        optimizer.step()


def slow_step(net, steps, total, pattern, *, decay, eps, weight_decay=WEIGHT_DECAY):
    """Algorithm 1 of STEP by hand; returns W, the number of dense steps, and how the switch came."""
    weights = {name: value.detach().numpy().copy() for name, value in net.named_parameters()}
    m = {name: np.zeros_like(value) for name, value in weights.items()}
    v = {name: np.zeros_like(value) for name, value in weights.items()}
    held, switched, changes = {}, None, []
    for t, (x, y) in enumerate(batches_of(steps), start=1):
        keep = {name: slow_keep(weights[name], pattern) for name in SPARSE} if switched else {}
        seen = {name: torch.tensor(w * keep.get(name, 1.0), requires_grad=True) for name, w in weights.items()}
        gradients = torch.autograd.grad(F.cross_entropy(forward_with(seen, x), y), list(seen.values()))
        moved = []
        for (name, w), gradient in zip(list(weights.items()), gradients, strict=True):
            g = gradient.numpy().copy()
            if name in keep:
                g += decay * (1.0 - keep[name]) * w
            m[name] = BETA1 * m[name] + (1 - BETA1) * g
            if name in held:
                denominator = np.sqrt(held[name]) + eps
            else:
                before = v[name]
                v[name] = BETA2 * before + (1 - BETA2) * g**2
                denominator = np.sqrt(v[name] / (1 - BETA2**t)) + eps
                if name in SPARSE:
                    moved.append(np.abs(v[name] - before).ravel())
            weights[name] = w * (1 - LR * weight_decay) - LR * m[name] / (1 - BETA1**t) / denominator
        if switched is None:
            changes = [*changes, np.concatenate(moved).mean()][-round(1 / (1 - BETA2)) :]
            late, settled = t > 0.5 * total, t > 0.1 * total and np.mean(changes) < eps
            if late or settled:
                switched = (t, "late" if late else "settled")
                held = {name: v[name] / (1 - BETA2**t) for name in SPARSE}
    return weights, switched


@pytest.mark.parametrize("text", ["2:4", "1:4", "4:8", "1:16"])
@pytest.mark.parametrize(
    ("eps", "total", "expected"),
    [(1e-8, 10, (6, "late")), (1e-3, 60, (7, "settled")), (2e-4, 20, None)],
)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_step_is_adam_with_held_second_moments(text, eps, total, expected, decay):
    net, pattern = fresh(), NMPattern.parse(text)
    dense, switched = slow_step(copy.deepcopy(net), STEPS, total, pattern, decay=decay, eps=eps)
    if expected is not None:
        assert switched == expected
    optimizer = adamw(net, eps=eps)
    sparsifier = sparsify(net, optimizer, text, "step", decay=decay, total_steps=total)
    assert sparsifier.patterns() == {}
    train(net, optimizer, batches_of(STEPS))
    assert sparsifier.state_dict()["precondition"]["switched_at"] == (switched and switched[0])
    for name, value in sparsifier.dense_state_dict(net).items():
        np.testing.assert_allclose(value.numpy(), dense[name], rtol=0, atol=1e-9, err_msg=name)
    for name in SPARSE:
        keep = slow_keep(dense[name], pattern) if switched else 1.0
        np.testing.assert_allclose(net.state_dict()[name].numpy(), dense[name] * keep, rtol=0, atol=1e-9)


def test_holding_the_second_moments_matters_in_that_comparison():
    """The reference is not blind to what STEP changes: SR-STE after as many dense steps differs by far more."""
    net = fresh()
    dense, _ = slow_step(copy.deepcopy(net), STEPS, 10, NMPattern(2, 4), decay=0.1, eps=1e-8)
    optimizer = adamw(net)
    with pytest.warns(UserWarning, match="STEP"):
        sparsifier = sparsify(net, optimizer, "2:4", "sr-ste", decay=0.1, dense_steps=6)
    train(net, optimizer, batches_of(STEPS))
    assert np.abs(sparsifier.dense_state_dict(net)["fc.weight"].numpy() - dense["fc.weight"]).max() > 1e-4


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"maximize": True}])
def test_every_way_that_torch_steps_adam_agrees(options):
    plain, other = fresh(), fresh()
    sign = -1 if options.get("maximize") else 1
    for net, more in ((plain, {}), (other, options)):
        optimizer = adamw(net, **more)
        sparsify(net, optimizer, "2:4", "step", total_steps=10)
        for x, y in batches_of(STEPS):
            optimizer.zero_grad()
            ((sign if more else 1) * F.cross_entropy(net(x), y)).backward()
            task = net.fc.weight.grad.clone()
            optimizer.step()
            assert torch.equal(net.fc.weight.grad, task)
    for name, value in plain.state_dict().items():
        # A maximized lambda term has the other sign twice, so it is the same.
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=1e-12)


def test_adam_without_weight_decay_is_taken_and_its_state_stays_its_own():
    net = fresh()
    dense, _ = slow_step(copy.deepcopy(net), STEPS, 10, NMPattern(2, 4), decay=2e-4, eps=1e-8, weight_decay=0.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, betas=(BETA1, BETA2))
    sparsifier = sparsify(net, optimizer, "2:4", "step", total_steps=10)
    train(net, optimizer, list(batches_of(6)))
    held = optimizer.state[net.fc.weight]["exp_avg_sq"].clone()
    train(net, optimizer, list(batches_of(STEPS))[6:])
    assert torch.equal(optimizer.state[net.fc.weight]["exp_avg_sq"], held)
    assert not torch.equal(optimizer.state[net.head.weight]["exp_avg_sq"], torch.zeros(4, 16))
    np.testing.assert_allclose(
        sparsifier.dense_state_dict(net)["fc.weight"].numpy(), dense["fc.weight"], rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("first", [3, 8])
def test_a_resumed_run_is_the_same_bit_for_bit(first):
    data = list(batches_of(STEPS))
    net = fresh()
    optimizer = adamw(net)
    sparsifier = sparsify(net, optimizer, "2:4", "step", total_steps=10)
    train(net, optimizer, data[:first])
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    train(net, optimizer, data[first:])
    torch.manual_seed(9)
    other = Net().double()
    other_optimizer = adamw(other)
    resumed = sparsify(other, other_optimizer, "2:4", "step", total_steps=10)
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    train(other, other_optimizer, data[first:])
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for name, value in sparsifier.dense_weights().items():
        assert torch.equal(value, resumed.dense_weights()[name]), name
    assert resumed.record_sad() == sparsifier.record_sad()
    assert resumed.state_dict()["precondition"] == sparsifier.state_dict()["precondition"]


def test_a_copy_goes_on_alike():
    net = fresh()
    optimizer = adamw(net)
    sparsifier = sparsify(net, optimizer, "2:4", "step", total_steps=10)
    data = list(batches_of(STEPS))
    train(net, optimizer, data[:8])
    other, other_optimizer, other_sparsifier = copy.deepcopy((net, optimizer, sparsifier))
    train(net, optimizer, data[8:])
    train(other, other_optimizer, data[8:])
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert other_sparsifier.record_sad() == sparsifier.record_sad()


@pytest.mark.parametrize("at", [2, 8])
def test_a_step_that_a_fused_kernel_skips_changes_nothing(at):
    net = fresh(torch.float32)
    optimizer = adamw(net, fused=True)
    sparsifier = sparsify(net, optimizer, "2:4", "step", total_steps=10)
    data = list(batches_of(STEPS))
    train(net, optimizer, data[:at])
    state = optimizer.state[net.fc.weight]
    before = copy.deepcopy((sparsifier.dense_weights(), state, sparsifier.state_dict()["precondition"]))
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(1.0)
    optimizer.zero_grad()
    (F.cross_entropy(net(data[at][0].float()), data[at][1]) * float("inf")).backward()
    optimizer.step()
    for name, value in sparsifier.dense_weights().items():
        assert torch.equal(value, before[0][name])
    for name, value in before[1].items():
        assert torch.equal(state[name], value), name
    assert sparsifier.state_dict()["precondition"] == before[2]


def test_a_closure_and_an_optimizer_that_raises_leave_the_state_as_it_was(monkeypatch):
    plain, closed = fresh(), fresh()
    optimizer = adamw(plain)
    sparsify(plain, optimizer, "2:4", "step", total_steps=10)
    train(plain, optimizer, batches_of(STEPS))
    optimizer = adamw(closed)
    sparsifier = sparsify(closed, optimizer, "2:4", "step", total_steps=10)
    for x, y in batches_of(STEPS):

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = F.cross_entropy(closed(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(closed.state_dict()[name], value, rtol=0, atol=1e-12)
    before = copy.deepcopy((sparsifier.dense_weights(), optimizer.state[closed.fc.weight]))

    def broken(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr(type(optimizer), "_init_group", broken)
    with pytest.raises(RuntimeError, match="broken"):
        optimizer.step()
    for name, value in sparsifier.dense_weights().items():
        assert torch.equal(value, before[0][name])
    assert torch.equal(optimizer.state[closed.fc.weight]["exp_avg_sq"], before[1]["exp_avg_sq"])
    assert torch.equal(optimizer.state[closed.fc.weight]["exp_avg"], before[1]["exp_avg"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: torch.optim.SGD(net.parameters(), lr=0.1), "SGD has no second moments"),
        (lambda net: adamw(net, amsgrad=True), "amsgrad"),
        (lambda net: adamw(net, betas=(0.0, 0.99)), "beta1 = 0"),
        (lambda net: torch.optim.Adam(net.parameters(), weight_decay=0.1), "adds the decay to the gradient"),
    ],
)
def test_optimizers_without_steps_rule_are_refused(make, message):
    net = fresh()
    with pytest.raises(ConfigError, match=message) as caught:
        sparsify(net, make(net), "2:4", "step", total_steps=10)
    assert "sr-ste" in (caught.value.hint or "")


def test_adamw_gets_step_by_default_and_is_told_so():
    net = fresh()
    with pytest.warns(UserWarning, match="no method was given, so it is step"):
        assert sparsify(net, adamw(net), "2:4", total_steps=10).method == "step"
    with pytest.warns(UserWarning, match=r"STEP \(Lu et al."):
        assert sparsify(net, adamw(net), "2:4").method == "sr-ste"
    with pytest.warns(UserWarning, match=r"STEP \(Lu et al."):
        assert sparsify(net, adamw(net), "2:4", "sr-ste", total_steps=10).method == "sr-ste"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        assert sparsify(net, sgd, "2:4", total_steps=10).method == "sr-ste"


@pytest.mark.parametrize("options", [{}, {"total_steps": 10, "dense_steps": 3}])
def test_settings_that_do_not_go_with_step_are_refused(options):
    net = fresh()
    with pytest.raises(ConfigError, match=r"total_steps|dense_steps"):
        sparsify(net, adamw(net), "2:4", "step", **options)
