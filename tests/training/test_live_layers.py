"""A sparsifier that changes while it lives: freeze and back, a dense start, layers in and out, experts; averages."""

import copy

import pytest
import torch
import torch.nn.functional as F
from plain_training import WEIGHTS, assert_split, batches_of, hold_still, mlp, most, one_step, started
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from nm2trt.errors import ConfigError
from nm2trt.training import project_average, sparse_average, sparse_average_state_dict, sparsify


def test_unfreeze_goes_on_with_the_values_that_freeze_left():
    net, optimizer, sparsifier = started()
    residuals = {name: value.clone() for name, value in sparsifier.residuals().items()}
    sparsifier.freeze_masks()
    masks = sparsifier.masks()
    for x, y in batches_of(3):
        one_step(net, optimizer, x, y)
    for name in WEIGHTS:
        assert torch.equal(sparsifier.residuals()[name], residuals[name])
        assert torch.equal(sparsifier.masks()[name], masks[name])
    sparsifier.unfreeze_masks()
    for x, y in batches_of(10, seed=1):
        one_step(net, optimizer, x, y)
    assert_split(net, sparsifier)
    assert sparsifier.record_sad().total.previous > 0
    with pytest.raises(ConfigError, match="asp holds its masks"):
        started(method="asp")[2].unfreeze_masks()


def test_the_dense_record_goes_on_after_freeze():
    net, optimizer, sparsifier = started(method="dense", lr=0.5)
    sparsifier.record_sad()
    sparsifier.freeze_masks()
    before = sparsifier.masks()
    for x, y in batches_of(10, seed=2):
        one_step(net, optimizer, x, y)
    moved = sum(int((mask ^ before[name]).sum()) for name, mask in sparsifier.masks().items())
    assert moved > 0
    assert sparsifier.record_sad().total.previous == moved


@pytest.mark.parametrize("method", ["ste", "sr-ste", "asp"])
def test_a_dense_start_is_dense_training_and_then_what_begins_there(method):
    """Against dense steps, and `sparsify` called after them with the optimizer as it is then."""
    data = batches_of(7)
    results = []
    for late in (False, True):
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
        sparsifier = None if late else sparsify(net, optimizer, "2:4", method, decay=0.1, dense_steps=4)
        for index, (x, y) in enumerate(data):
            if sparsifier is not None and index < 4:
                assert sparsifier.patterns() == {}
                assert sparsifier.report()[0].reason == "dense for 4 steps, then 2:4"
                assert most(net[0].weight) == 4
            one_step(net, optimizer, x, y)
            if index == 3 and late:
                sparsifier = sparsify(net, optimizer, "2:4", method, decay=0.1)
            if index >= 3:
                assert set(sparsifier.patterns()) == set(WEIGHTS)
                assert most(net[0].weight) == 2
        results.append((sparsifier.dense_weights(), sparsifier.masks()))
    for name in WEIGHTS:
        assert torch.equal(results[0][0][name], results[1][0][name])
        assert torch.equal(results[0][1][name], results[1][1][name])


@pytest.mark.parametrize("at", [2, 6])
def test_a_dense_start_goes_through_a_resume(at):
    data = batches_of(9)

    def run():
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
        return net, optimizer, sparsify(net, optimizer, "2:4", decay=0.1, dense_steps=4)

    whole, parts = run(), run()
    for x, y in data:
        one_step(*whole[:2], x, y)
    for x, y in data[:at]:
        one_step(*parts[:2], x, y)
    saved = copy.deepcopy([part.state_dict() for part in parts])
    resumed = run()
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    for x, y in data[at:]:
        one_step(*resumed[:2], x, y)
    for name in WEIGHTS:
        assert torch.equal(resumed[2].dense_weights()[name], whole[2].dense_weights()[name])


def test_layers_leave_dense_and_come_back():
    net, optimizer, sparsifier = started()
    dense = sparsifier.dense_weights()["2.weight"]
    assert sparsifier.release_layers(["2"]) == ["2.weight"]
    assert torch.equal(net[2].weight, dense)
    assert set(sparsifier.patterns()) == {"0.weight"}
    assert [entry.reason for entry in sparsifier.report() if entry.name == "2.weight"] == ["released"]
    for x, y in batches_of(2):
        one_step(net, optimizer, x, y)
    assert most(net[2].weight) == 4
    assert most(net[0].weight) == 2
    dense = net[2].weight.detach().clone()
    assert sparsifier.add_layers({"2": "1:4"}) == ["2.weight"]
    assert torch.equal(sparsifier.dense_weights()["2.weight"], dense)
    assert sparsifier.add_layers(["4"]) == ["4.weight"]
    for x, y in batches_of(2):
        one_step(net, optimizer, x, y)
    assert {name: str(value) for name, value in sparsifier.patterns().items()} == {
        "0.weight": "2:4",
        "2.weight": "1:4",
        "4.weight": "2:4",
    }
    assert [most(net[index].weight) for index in (0, 2, 4)] == [2, 1, 2]


def test_a_layer_added_to_the_model_can_be_added_here():
    net, optimizer, sparsifier = started()
    net.append(nn.Tanh()).append(nn.Linear(4, 8).double())
    with pytest.raises(ConfigError, match=r"the optimizer does not own 6\.weight"):
        sparsifier.add_layers({"6": "1:4"})
    optimizer.add_param_group({"params": list(net[6].parameters())})
    assert sparsifier.add_layers({"6": "1:4"}) == ["6.weight"]
    net(batches_of(1)[0][0]).square().sum().backward()
    optimizer.step()
    assert most(net[6].weight) == 1


class Experts(nn.Module):
    """A mixture whose experts lie in one parameter each: up_EKN is applied as x @ w, down_ENK as linear."""

    def __init__(self):
        super().__init__()
        self.up_EKN = nn.Parameter(torch.randn(3, 16, 8) / 4)
        self.down_ENK = nn.Parameter(torch.randn(3, 4, 8) / 3)

    def forward(self, x_EBK):
        return torch.einsum("ebk,enk->ebn", torch.tanh(torch.bmm(x_EBK, self.up_EKN)), self.down_ENK)


def test_experts_in_one_parameter_are_each_experts_matrix():
    """The same training with a Linear for each expert, whose weights are 2:4 by the ordinary rule."""
    torch.manual_seed(0)
    together = nn.ModuleDict({"moe": Experts()}).double()
    moe = together["moe"]
    apart = nn.ModuleList(
        [nn.Sequential(nn.Linear(16, 8, bias=False), nn.Tanh(), nn.Linear(8, 4, bias=False)) for _ in range(3)]
    ).double()
    with torch.no_grad():
        for index, expert in enumerate(apart):
            expert[0].weight.copy_(moe.up_EKN[index].T)
            expert[2].weight.copy_(moe.down_ENK[index])
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (together, apart)]
    ours = sparsify(together, optimizers[0], "2:4", decay=0.1, axes={"moe.up_*": 1, "*.down_ENK": -1})
    sparsify(apart, optimizers[1], "2:4", decay=0.1, layer_patterns={"*.2": "2:4"})
    for _ in range(4):
        x_EBK = torch.randn(3, 6, 16, dtype=torch.float64)
        for optimizer in optimizers:
            optimizer.zero_grad()
        moe(x_EBK).square().sum().backward()
        sum(expert(x).square().sum() for expert, x in zip(apart, x_EBK, strict=True)).backward()
        for optimizer in optimizers:
            optimizer.step()
    for index, expert in enumerate(apart):
        torch.testing.assert_close(moe.up_EKN[index].T, expert[0].weight, rtol=0, atol=1e-12)
        torch.testing.assert_close(moe.down_ENK[index], expert[2].weight, rtol=0, atol=1e-12)
        assert torch.equal(moe.up_EKN[index].T != 0, expert[0].weight != 0)
    assert "as given" in ours.report()[0].reason
    with pytest.raises(ConfigError, match=r"layer moe\.up_EKN: reduction axis of 3 is no multiple of M = 4"):
        sparsify(together, optimizers[0], "2:4", axes={"moe.up_EKN": 0})


class TimmEma:
    """As timm's first ModelEma: no module, `.ema` holds the average."""

    def __init__(self, net):
        self.ema = copy.deepcopy(net).eval()

    def update(self, net):
        for mean, value in zip(self.ema.state_dict().values(), net.state_dict().values(), strict=True):
            mean.lerp_(value, 0.4)


class TimmEmaV2(nn.Module):
    """As timm's ModelEmaV2 and V3: `.module` holds the average."""

    def __init__(self, net):
        super().__init__()
        self.module = copy.deepcopy(net).eval()

    update = TimmEma.update

    @property
    def ema(self):
        raise AttributeError


def swa(net):
    return AveragedModel(net)


def ema(net):
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.6), use_buffers=True)


@pytest.mark.parametrize("kind", [swa, ema, TimmEma])
def test_an_average_is_n_m_in_use_and_dense_while_it_grows(kind):
    net, optimizer, sparsifier = started(lr=0.5)
    average = kind(net)
    update = getattr(average, "update_parameters", None) or average.update
    for x, y in batches_of(8, seed=4):
        one_step(net, optimizer, x, y)
        update(net)
        inner = getattr(average, "ema", None) or average.module
        dense = inner[0].weight.detach().clone()
        with sparse_average(average, sparsifier) as network:
            assert network is inner
            assert most(inner[0].weight) == 2
            assert torch.equal(inner[0].weight[inner[0].weight != 0], dense[inner[0].weight != 0])
        assert torch.equal(inner[0].weight, dense)
    assert most(dense) > 2, "a mean over several masks"
    with sparse_average(average, sparsifier, masks="trained"):
        assert torch.equal(inner[0].weight != 0, sparsifier.masks()["0.weight"] & (dense != 0))
    state = sparse_average_state_dict(average, sparsifier)
    assert set(state) == set(net.state_dict())
    assert most(state["0.weight"]) == 2
    assert torch.equal(inner[0].weight, dense)
    assert project_average(average, sparsifier) is inner
    assert torch.equal(inner[0].weight, state["0.weight"])
    assert_split(net, sparsifier)


def test_an_average_of_the_dense_weights_and_batch_norm():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    sparsifier = sparsify(net, optimizer, "2:4", decay=0.1)
    average, dense = AveragedModel(net), []
    for x, y in batches_of(5):
        one_step(net, optimizer, x, y)
        with sparsifier.dense_parameters():
            average.update_parameters(net)
        dense.append(sparsifier.dense_weights()["0.weight"])
    torch.testing.assert_close(average.module[0].weight.detach(), torch.stack(dense).mean(0), rtol=0, atol=1e-12)
    project_average(average, sparsifier)
    update_bn([x for x, _ in batches_of(3)], average)
    assert most(average.module[0].weight) == 2


def test_an_average_copied_back_into_training_becomes_w():
    net, optimizer, sparsifier = started(lr=0.5)
    average = AveragedModel(net)
    for x, y in batches_of(6, seed=4):
        one_step(net, optimizer, x, y)
        average.update_parameters(net)
    net.load_state_dict(average.module.state_dict())
    hold_still(optimizer)
    one_step(net, optimizer, *batches_of(1)[0])
    torch.testing.assert_close(
        sparsifier.dense_weights()["0.weight"], average.module[0].weight.detach(), rtol=0, atol=0
    )
    assert_split(net, sparsifier)


def test_an_average_of_another_network_is_refused():
    _, _, sparsifier = started()
    other = AveragedModel(nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 16)))
    with pytest.raises(ConfigError, match=r"layer 0\.weight: the average is of \[24, 8\]"):
        project_average(other, sparsifier)
    with pytest.raises(ConfigError, match=r"layer 0\.weight: the average has no such weight"):
        project_average(nn.Linear(3, 3), sparsifier)
    with pytest.raises(ConfigError, match="dict holds no network"):
        project_average({}, sparsifier)
    with pytest.raises(ConfigError, match="unknown masks"):
        project_average(AveragedModel(mlp()), sparsifier, masks="none")


def test_a_loss_of_the_averages_context_restores_it():
    net, _, sparsifier = started()
    average = TimmEma(net)
    average.ema[0].weight.data.normal_()
    before = average.ema[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match="mine"), sparse_average(average, sparsifier):
        raise RuntimeError("mine")
    assert torch.equal(average.ema[0].weight, before)
    assert F.mse_loss(average.ema[0].weight, before) == 0


def test_with_every_layer_released_training_goes_on_dense_and_layers_can_come_back():
    net, optimizer, sparsifier = started()
    assert sparsifier.release_layers(["*"]) == list(WEIGHTS)
    for x, y in batches_of(2, seed=3):
        one_step(net, optimizer, x, y)
    assert most(net[0].weight) == most(net[2].weight) == 4
    assert sparsifier.patterns() == {}
    assert sparsifier.record_sad().total.weights == 0
    assert sparsifier.state_dict()["layers"] == {}
    assert sparsifier.add_layers(["0"]) == ["0.weight"]
    one_step(net, optimizer, *batches_of(1)[0])
    assert (most(net[0].weight), most(net[2].weight)) == (2, 4)
