"""Whatever writes to a parameter between steps: it acts on W, or is refused in words that name the layer."""

import copy
import io
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from nm2trt.errors import ConfigError
from nm2trt.training import sparsify

WEIGHTS = ("0.weight", "2.weight")


def mlp(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)


def batches_of(count, seed=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(8, 16, dtype=torch.float64, generator=generator).to(dtype),
            torch.randint(0, 4, (8,), generator=generator),
        )
        for _ in range(count)
    ]


def one_step(net, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    optimizer.step()


def most(weight):
    """Most non-zeros in four neighbors along axis 1, one group at a time."""
    rows = weight.detach().movedim(1, -1).reshape(-1, weight.shape[1]).tolist()
    return max(sum(value != 0 for value in row[k : k + 4]) for row in rows for k in range(0, len(row), 4))


def started(*, steps=3, lr=0.2, dtype=torch.float64, **options):
    net = mlp(dtype=dtype)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.5)
    sparsifier = sparsify(net, optimizer, "2:4", **{"decay": 1e-2, **options})
    for x, y in batches_of(steps, dtype=dtype):
        one_step(net, optimizer, x, y)
    return net, optimizer, sparsifier


def hold_still(optimizer):
    """Steps that change nothing, so that what a step finds stays to be seen."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0


def assert_split(net, sparsifier):
    for name, residual in sparsifier.residuals().items():
        weight = net.get_parameter(name).detach()
        assert not ((weight != 0) & (residual != 0)).any()
        assert most(weight) <= 2


def with_load(net, state):
    net.load_state_dict(state)


def with_strict_off(net, state):
    net.load_state_dict({name: state[name] for name in WEIGHTS}, strict=False)


def into_submodules(net, state):
    for index in (0, 2):
        net[index].load_state_dict({"weight": state[f"{index}.weight"], "bias": state[f"{index}.bias"]})


def into_compiled(net, state):
    compiled = torch.compile(net, backend="eager")
    compiled.load_state_dict({f"_orig_mod.{name}": value for name, value in state.items()})


LOADS = (with_load, with_strict_off, into_submodules, into_compiled)


def by_copy(net, state):
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(state[name])


def by_data_copy(net, state):
    for name, parameter in net.named_parameters():
        parameter.data.copy_(state[name])


def by_data_swap(net, state):
    for name, parameter in net.named_parameters():
        parameter.data = state[name].clone()


def by_numpy(net, state):
    for name, parameter in net.named_parameters():
        parameter.detach().numpy()[...] = state[name].numpy()


def by_vector(net, state):
    vector_to_parameters(torch.cat([state[name].flatten() for name, _ in net.named_parameters()]), net.parameters())


BY_HAND = (by_copy, by_data_copy, by_data_swap, by_numpy, by_vector)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("load", LOADS)
def test_loaded_weights_are_n_m_at_once_and_become_w(load, steps):
    net, optimizer, sparsifier = started(steps=steps)
    state = mlp(seed=5).state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(net, state)
    for name in WEIGHTS:
        assert most(net.get_parameter(name)) == 2, "before any step"
        assert torch.equal(sparsifier.dense_weights()[name], state[name])
    hold_still(optimizer)
    one_step(net, optimizer, *batches_of(1)[0])
    for name in WEIGHTS:
        assert torch.equal(sparsifier.dense_weights()[name], state[name])
    assert_split(net, sparsifier)


@pytest.mark.parametrize("write", BY_HAND)
def test_weights_written_by_hand_become_w_at_the_next_step_and_say_so(write):
    net, optimizer, sparsifier = started()
    state = mlp(seed=5).state_dict()
    write(net, state)
    hold_still(optimizer)
    with pytest.warns(UserWarning, match=r"0\.weight, 2\.weight were replaced outside of the optimizer's step"):
        one_step(net, optimizer, *batches_of(1)[0])
    for name in WEIGHTS:
        assert torch.equal(sparsifier.dense_weights()[name], state[name])
    assert_split(net, sparsifier)
    by_copy(net, mlp(seed=6).state_dict())
    with pytest.raises(ConfigError, match=r"layer 0\.weight, 2\.weight: .* again and again"):
        one_step(net, optimizer, *batches_of(1)[0])


@pytest.mark.filterwarnings("error::pytest.PytestWarning")
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("which", ["dense", "sparse"])
def test_a_checkpoint_may_be_restored_by_hand_as_often_as_anybody_likes(which, steps):
    net, optimizer, sparsifier = started()
    state = mlp(seed=5).state_dict() if which == "dense" else copy.deepcopy(net.state_dict())
    for x, y in batches_of(8, seed=9):
        one_step(net, optimizer, x, y)
    for count in range(3):
        by_copy(net, state)
        words = f"step {11 + count * steps}: they are the dense weights"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            sparsifier.record_sad()
        if which == "dense" or not count:
            assert [words in str(one.message) for one in caught] == [True]
        for name in WEIGHTS:
            assert torch.equal(sparsifier.dense_weights()[name], state[name])
        assert_split(net, sparsifier)
        for x, y in batches_of(steps, seed=count):
            one_step(net, optimizer, x, y)
        if which == "sparse":
            for x, y in batches_of(8, seed=9):
                one_step(net, optimizer, x, y)
            steps += 8 * (count == 0)


def test_where_some_masks_have_moved_a_restored_checkpoint_is_one_everywhere():
    net, optimizer, sparsifier = started()
    state = copy.deepcopy(net.state_dict())
    with sparsifier.dense_parameters(), torch.no_grad():
        net[0].weight.neg_().add_(0.1)
        net[2].weight.sub_(1e-9 * net[2].weight.square())
    by_copy(net, state)
    hold_still(optimizer)
    with pytest.warns(UserWarning, match=r"0\.weight, 2\.weight were replaced"):
        one_step(net, optimizer, *batches_of(1)[0])
    for name in WEIGHTS:
        assert torch.equal(sparsifier.dense_weights()[name], state[name])


@pytest.mark.parametrize("options", [{"method": "asp"}, {}])
def test_while_masks_are_held_kept_weights_may_be_written(options):
    net, optimizer, sparsifier = started(**options)
    sparsifier.freeze_masks()
    expected, plain = mlp(), None
    for x, y in batches_of(4, seed=9):
        expected.load_state_dict(net.state_dict())
        plain = torch.optim.SGD(expected.parameters(), lr=0.2, momentum=0.5)
        plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        masks = sparsifier.masks()
        one_step(net, optimizer, x, y)
        clamp(net)
        expected.zero_grad()
        F.cross_entropy(expected(x), y).backward()
        for name in WEIGHTS:
            expected.get_parameter(name).grad.mul_(masks[name])
        plain.step()
        clamp(expected)
        for name in WEIGHTS:
            assert torch.equal(net.get_parameter(name), expected.get_parameter(name) * masks[name])
            assert torch.equal(sparsifier.masks()[name], masks[name])


@pytest.mark.parametrize("load", [with_load, into_submodules, by_copy])
def test_an_average_loaded_for_evaluation_and_taken_out_again_changes_nothing(load):
    net, optimizer, sparsifier = started()
    for epoch in range(3):
        before = sparsifier.dense_weights()
        state = copy.deepcopy(net.state_dict())
        for seed in (5, 6):
            load(net, mlp(seed=seed).state_dict())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert not torch.equal(sparsifier.dense_weights()["0.weight"], before["0.weight"])
        load(net, state)
        for name in WEIGHTS:
            assert torch.equal(sparsifier.dense_weights()[name], before[name])
        assert_split(net, sparsifier)
        one_step(net, optimizer, *batches_of(1, seed=epoch)[0])


def test_training_goes_on_from_loaded_weights_as_from_the_start():
    fresh = mlp(seed=5)
    state = copy.deepcopy(fresh.state_dict())
    results = []
    for net in (fresh, mlp(seed=1)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
        sparsifier = sparsify(net, optimizer, "2:4", decay=1e-2)
        if net is not fresh:
            net.load_state_dict(state)
        for x, y in batches_of(4):
            one_step(net, optimizer, x, y)
        results.append((sparsifier.dense_weights(), sparsifier.record_sad()))
    for name in WEIGHTS:
        assert torch.equal(results[0][0][name], results[1][0][name])
    assert results[0][1] == results[1][1]


def test_loading_finds_new_masks_even_where_they_are_held():
    state = mlp(seed=5).state_dict()
    for options in ({"method": "asp"}, {}):
        net, optimizer, sparsifier = started(**options)
        sparsifier.freeze_masks()
        with_load(net, state)
        for x, y in batches_of(2):
            one_step(net, optimizer, x, y)
        for name in WEIGHTS:
            kept = state[name].abs().unflatten(1, (-1, 4)).topk(2, dim=2).indices
            expected = (
                torch.zeros(state[name].shape, dtype=torch.bool).unflatten(1, (-1, 4)).scatter_(2, kept, value=True)
            )
            assert torch.equal(sparsifier.masks()[name], expected.flatten(1)), options
            assert most(net.get_parameter(name)) == 2


def test_an_older_state_of_the_same_run_without_its_sparsifier_becomes_w():
    net, optimizer, sparsifier = started()
    old = copy.deepcopy(net.state_dict())
    for x, y in batches_of(3, seed=9):
        one_step(net, optimizer, x, y)
    net.load_state_dict(old)
    for name in WEIGHTS:
        assert torch.equal(sparsifier.dense_weights()[name], old[name])
        assert torch.equal(net.get_parameter(name), old[name])


def test_loading_what_is_there_already_keeps_the_residual():
    net, _, sparsifier = started()
    before = sparsifier.dense_weights()
    net.load_state_dict(copy.deepcopy(net.state_dict()))
    for name in WEIGHTS:
        assert torch.equal(sparsifier.dense_weights()[name], before[name])


@pytest.mark.parametrize("in_place", [False, True])
def test_a_state_that_was_given_out_survives_what_is_loaded_in_between(in_place):
    """As torch.distributed.checkpoint: it fills the tensors of both live states, then both are loaded."""
    net, _, sparsifier = started(steps=6)
    saved = copy.deepcopy((net.state_dict(), sparsifier.state_dict(), sparsifier.dense_weights()))
    other, optimizer, resumed = started(steps=2)
    live = resumed.state_dict()
    with torch.no_grad():
        for name, entry in live["layers"].items():
            for key in ("residual", "bits", "flips"):
                entry[key].copy_(saved[1]["layers"][name][key])
        if in_place:
            for name, value in other.state_dict().items():
                value.copy_(saved[0][name])
    if not in_place:
        other.load_state_dict(saved[0])
    resumed.load_state_dict({**live, "steps": 6})
    for name in WEIGHTS:
        assert torch.equal(resumed.dense_weights()[name], saved[2][name])
    one_step(other, optimizer, *batches_of(1)[0])
    assert_split(other, resumed)


def test_the_dense_state_dict_loaded_again_changes_nothing():
    net, _, sparsifier = started()
    dense, sparse = sparsifier.dense_state_dict(net), copy.deepcopy(net.state_dict())
    net.load_state_dict(dense)
    for name in WEIGHTS:
        assert torch.equal(sparsifier.dense_weights()[name], dense[name])
        assert torch.equal(net.get_parameter(name), sparse[name])


def by_mul(net, factor):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(factor)


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


def clamp(net):
    for parameter in net.parameters():
        parameter.data.clamp_(-0.05, 0.05)


def scale_rows(net):
    with torch.no_grad():
        net[0].weight.div_(net[0].weight.norm(dim=1, keepdim=True))


def shift_kept(net):
    with torch.no_grad():
        net[0].weight.add_(0.01 * net[0].weight.sign())


def revive_some(net):
    with torch.no_grad():
        net[0].weight[:, ::4].add_(0.5)


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
