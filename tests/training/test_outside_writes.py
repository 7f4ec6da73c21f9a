"""Whatever writes to a parameter between steps: it acts on W, or is refused in words that name the layer."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from plain_training import WEIGHTS, assert_split, batches_of, by_copy, clamp, hold_still, mlp, most, one_step, started
from torch.nn.utils import vector_to_parameters

from nm2trt.errors import ConfigError
from nm2trt.training import sparsify


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
