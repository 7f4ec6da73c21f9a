"""Parameters, layers and states that are replaced, removed, pickled or moved between steps."""

import copy
import io
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from plain_training import (
    WEIGHTS,
    assert_split,
    batches_of,
    by_copy,
    by_mul,
    clamp,
    mlp,
    most,
    one_step,
    revive_some,
    started,
)
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.training import sparsify


def test_parameters_without_values_are_refused():
    net, optimizer, sparsifier = started()
    net.to_empty(device="meta")
    with pytest.raises(ConfigError, match=r"0\.weight"):
        optimizer.step()
    with pytest.raises(ConfigError, match=r"0\.weight"):
        sparsifier.masks()


def test_another_shape_is_refused():
    net, optimizer, _ = started()
    net[0].weight.data = torch.randn(24, 32, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"layer 0\.weight: has the shape \[24, 32\] now, \[24, 16\]"):
        optimizer.step()


def test_assigned_parameters_that_no_optimizer_steps_are_refused():
    net, optimizer, sparsifier = started()
    net.load_state_dict(mlp(seed=4).state_dict(), assign=True)
    for act in (optimizer.step, sparsifier.patterns, sparsifier.record_sad):
        with pytest.raises(ConfigError, match=r"layer 0\.weight: its weight is no longer the model's"):
            act()


def test_assigned_parameters_that_the_optimizer_steps_are_taken_over():
    net, optimizer, sparsifier = started()
    state = mlp(seed=4).state_dict()
    net.load_state_dict(copy.deepcopy(state), assign=True)
    optimizer.param_groups[0]["params"] = list(net.parameters())
    assert torch.equal(sparsifier.dense_weights()["0.weight"], state["0.weight"])
    one_step(net, optimizer, *batches_of(1)[0])
    assert_split(net, sparsifier)


def test_a_replaced_layer_is_taken_over_or_refused():
    net, optimizer, sparsifier = started()
    net[2] = nn.Linear(24, 16).double()
    with pytest.raises(ConfigError, match=r"layer 2\.weight: its weight is no longer the model's.*does not own"):
        sparsifier.masks()
    optimizer.add_param_group({"params": list(net[2].parameters()), "lr": 0.1})
    assert torch.equal(sparsifier.masks()["2.weight"], net[2].weight != 0)
    one_step(net, optimizer, *batches_of(1)[0])
    assert_split(net, sparsifier)
    net[2] = nn.Linear(24, 18).double()  # and one after it, whose M does not divide
    net[4] = nn.Linear(18, 4).double()
    optimizer.add_param_group({"params": [*net[2].parameters(), *net[4].parameters()]})
    assert set(sparsifier.patterns()) == {"0.weight", "2.weight"}


def test_a_removed_layer_is_named_and_can_be_released():
    net, optimizer, sparsifier = started()
    net[2], net[4] = nn.Identity(), nn.Linear(24, 4).double()
    optimizer.add_param_group({"params": list(net[4].parameters())})
    with pytest.raises(ConfigError, match=r"2\.weight: its weight is no longer the model's.*release_layers\(\['2'\]\)"):
        optimizer.step()
    assert sparsifier.release_layers(["2"]) == ["2.weight"]
    one_step(net, optimizer, *batches_of(1)[0])
    assert set(sparsifier.patterns()) == {"0.weight"}
    assert most(net[0].weight) == 2


def test_a_module_that_is_wrapped_keeps_its_weight():
    net, optimizer, sparsifier = started()
    net[0] = nn.Sequential(net[0], nn.Identity())
    one_step(net, optimizer, *batches_of(1)[0])
    assert most(net[0][0].weight) == 2
    assert "0.weight" in sparsifier.masks()


def test_a_sparsifier_state_of_another_moment_is_refused():
    net, optimizer, sparsifier = started()
    early = copy.deepcopy((net.state_dict(), sparsifier.state_dict()))
    for x, y in batches_of(12, seed=11):
        one_step(net, optimizer, x, y)
    with pytest.raises(ConfigError, match=r"layer 0\.weight: \d+ of 384 weights are kept in the model and pruned"):
        sparsifier.load_state_dict(early[1])
    net.load_state_dict(early[0])
    sparsifier.load_state_dict(early[1])
    assert sparsifier.steps == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: [], "no state of a sparsifier"),
        (lambda state: {}, "no state of a sparsifier"),
        (
            lambda state: {**state, "layers": {**state["layers"], "0.weight": {}}},
            r"layer 0\.weight: the saved state is damaged",
        ),
        (lambda state: {**state, "layers": {"0.weight": state["layers"]["0.weight"]}}, "other sparse layers"),
    ],
)
def test_what_is_no_state_is_one_line(change, words):
    _, _, sparsifier = started()
    with pytest.raises(ConfigError, match=words):
        sparsifier.load_state_dict(change(sparsifier.state_dict()))


def test_a_state_of_another_width_is_words():
    narrow = nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 16), nn.Linear(16, 4))
    wide = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 4))
    states = [sparsify(net, torch.optim.SGD(net.parameters(), lr=0.1), "2:4") for net in (narrow, wide)]
    with pytest.raises(ConfigError, match=r"layer 0\.weight: the saved state is of a weight of shape \[24, 8\]"):
        states[1].load_state_dict(states[0].state_dict())


def test_a_network_that_diverges_is_not_blamed_on_others():
    net, optimizer, sparsifier = started()
    net[0].weight.grad.fill_(float("nan"))
    optimizer.step()
    optimizer.step()
    assert net[0].weight.isnan().any()
    assert "0.weight" in sparsifier.patterns()


def test_the_dense_method_lets_everybody_write():
    net, optimizer, sparsifier = started(method="dense")
    clamp(net)
    revive_some(net)
    by_copy(net, mlp(seed=2).state_dict())
    one_step(net, optimizer, *batches_of(1)[0])
    assert sparsifier.patterns() == {}


def test_the_model_can_be_pickled_and_needs_no_nm2trt_to_be_loaded(tmp_path):
    net, _, _ = started()
    torch.save(net, tmp_path / "net.pt")
    script = (
        "import sys, torch; sys.modules['nm2trt'] = None\n"
        f"net = torch.load({str(tmp_path / 'net.pt')!r}, weights_only=False)\n"
        "net.load_state_dict(net.state_dict()); print(int((net[0].weight != 0).sum()))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) == int((net[0].weight != 0).sum())


def test_a_copied_model_is_its_owners_to_load_into():
    net, _, sparsifier = started()
    before = sparsifier.dense_weights()
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(net), torch.load(buffer, weights_only=False)):
        state = mlp(seed=8).state_dict()
        other.load_state_dict(state)
        assert torch.equal(other[0].weight, state["0.weight"])
    assert torch.equal(sparsifier.dense_weights()["0.weight"], before["0.weight"])


@pytest.mark.gpu
@pytest.mark.parametrize("write", [by_copy, by_mul, None])
def test_on_a_gpu_the_same_writes_lead_to_the_same_weights(write):
    results = []
    for device in ("cpu", "cuda"):
        net = mlp().to(device)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        sparsifier = sparsify(net, optimizer, "2:4", decay=0.1)
        state = {name: value.to(device) for name, value in mlp(seed=5).state_dict().items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for index, (x, y) in enumerate(batches_of(6)):
                one_step(net, optimizer, x.to(device), y.to(device))
                if write is by_mul:
                    by_mul(net, 0.9)
                elif write is not None and index == 2:
                    write(net, state)
        gradient = net[0].weight.grad
        assert_split(net, sparsifier)
        results.append({**sparsifier.dense_weights(), "gradient": gradient})
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name].cpu(), value, rtol=0, atol=1e-10)


@pytest.mark.gpu
def test_weights_moved_to_a_gpu_and_back_keep_their_residuals():
    net, optimizer, sparsifier = started()
    before = sparsifier.dense_weights()
    for device in ("cuda", "cpu"):
        net.to(device)
        for name in WEIGHTS:
            assert torch.equal(sparsifier.dense_weights()[name].cpu(), before[name])
    one_step(net, optimizer, *batches_of(1)[0])
    assert_split(net, sparsifier)


@pytest.mark.parametrize("example", [torch.zeros(2, 7), "text", {"unknown": torch.zeros(2, 16)}, torch.zeros(2, 16)])
def test_an_example_that_the_network_cannot_take_is_words(example):
    net = mlp()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ConfigError, match="example_inputs: the network cannot be run on it"):
        sparsify(net, torch.optim.SGD(net.parameters(), lr=0.1), example_inputs=example)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_checkpoint_restored_where_no_mask_has_moved_becomes_w():
    net, optimizer, sparsifier = started()
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    one_step(net, optimizer, *batches_of(1)[0])
    state, masks = copy.deepcopy(net.state_dict()), sparsifier.masks()
    for x, y in batches_of(4, seed=9):
        one_step(net, optimizer, x, y)
    assert all(torch.equal(masks[name], mask) for name, mask in sparsifier.masks().items())
    by_copy(net, state)
    with pytest.warns(UserWarning, match=r"0\.weight, 2\.weight were replaced"):
        dense = sparsifier.dense_weights()
    for name in WEIGHTS:
        assert torch.equal(dense[name], state[name])


def test_a_step_within_backward_is_refused():
    net = mlp()
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in net.parameters()}

    class Several:
        def __init__(self):
            self.optimizers = list(optimizers.values())
            self.param_groups = [group for one in self.optimizers for group in one.param_groups]

        def step(self):
            for one in self.optimizers:
                one.step()

    sparsify(net, Several(), "2:4")
    for parameter, optimizer in optimizers.items():
        parameter.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
    x, y = batches_of(1)[0]
    with pytest.raises(ConfigError, match=r"layer 0\.weight: an optimizer steps within backward\(\)"):
        F.cross_entropy(net(x), y).backward()
    assert most(net[0].weight) == most(net[2].weight) == 2


def test_weights_drawn_anew_for_each_trial_are_new_weights():
    net, optimizer, sparsifier = started()
    for seed in range(3):
        torch.manual_seed(seed)
        for layer in net[::2]:
            layer.reset_parameters()
        state = copy.deepcopy(net.state_dict())
        with pytest.warns(UserWarning, match=f"step {3 + 2 * seed}: they are the dense weights"):
            dense = sparsifier.dense_weights()
        for name in WEIGHTS:
            assert torch.equal(dense[name], state[name])
        for x, y in batches_of(2, seed=seed):
            one_step(net, optimizer, x, y)
        assert_split(net, sparsifier)
