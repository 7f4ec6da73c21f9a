"""A wrong argument of `sparsify` is one line that says what, where and how to go on."""

import re

import numpy as np
import pytest
import torch
from plain_training import mlp, started
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern
from nm2trt.training import sparsify


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decay": float("nan")}, "decay: nan is no finite number"),
        ({"decay": float("inf")}, "decay: inf is no finite number"),
        ({"decay": -float("inf")}, "decay: -inf is no finite number"),
        ({"decay": -1e-9}, "decay: -1e-09 is negative"),
        ({"decay": "1e-4"}, "decay: '1e-4' is no finite number"),
        ({"decay": None}, "decay: None is no finite number"),
        ({"decay": True}, "decay: True is no finite number"),
        ({"decay": 1j}, "decay: 1j is no finite number"),
        ({"decay": float("nan"), "method": "dense"}, "decay: nan is no finite number"),
        ({"pattern": (2, 4)}, "pattern: (2, 4) is no N:M pattern"),
        ({"pattern": 2}, "pattern: 2 is no N:M pattern"),
        ({"pattern": None}, "pattern: None is no N:M pattern"),
        ({"pattern": b"2:4"}, "pattern: b'2:4' is no N:M pattern"),
        ({"mask_update_interval": 1.5}, "mask_update_interval: mask_update_interval = 1.5"),
        ({"mask_update_interval": "2"}, "mask_update_interval: mask_update_interval = '2'"),
        ({"mask_update_interval": True}, "mask_update_interval: mask_update_interval = True"),
        ({"mask_update_interval": -1}, "mask_update_interval: mask_update_interval = -1"),
        ({"dense_steps": -1}, "dense_steps: dense_steps = -1"),
        ({"dense_steps": float("nan")}, "dense_steps: dense_steps = nan"),
        ({"layer_patterns": {"0": 4}}, "layer_patterns['0']: 4 is no N:M pattern"),
        ({"layer_patterns": {"0": (1, 4)}}, "layer_patterns['0']: (1, 4) is no N:M pattern"),
        ({"layer_patterns": {0: "1:4"}}, "layer_patterns: {0: '1:4'} is no mapping"),
        ({"layer_patterns": ["0"]}, "layer_patterns: ['0'] is no mapping"),
        ({"layer_patterns": "0"}, "layer_patterns: '0' is no mapping"),
        ({"exclude": "0"}, "exclude: '0' is no list of names"),
        ({"exclude": [0]}, "exclude: 0 is no name"),
        ({"exclude": 0}, "exclude: 0 is no list of names"),
        ({"axes": {"0.weight": "1"}}, "axes: {'0.weight': '1'} is no mapping"),
        ({"axes": {"9.weight": 1}}, "axes: no parameter matches '9.weight'"),
        ({"axes": {"0.weight": 2}}, "layer 0.weight: axis 2 of a weight of shape [24, 16]"),
        ({"method": ["ste"]}, "method: unknown method ['ste']"),
    ],
)
def test_each_is_refused_in_words_and_leaves_everything_as_it_was(options, words):
    net = mlp()
    optimizer, before = sgd(net), net[0].weight.detach().clone()
    with pytest.raises(ConfigError, match=re.escape(words)):
        sparsify(net, optimizer, **options)
    assert torch.equal(net[0].weight, before)
    assert "step" not in vars(optimizer)
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda net: (sgd(net), net), "model: the first argument is of type SGD, no torch.nn.Module; swap them"),
        (lambda net: (net, net), "optimizer: the second argument is of type Sequential"),
        (lambda net: (net.state_dict(), sgd(net)), "model: the first argument is of type OrderedDict"),
        (lambda net: (nn.Linear, sgd(net)), "model: the first argument is the class Linear"),
        (lambda net: (net, torch.optim.SGD), "optimizer: the second argument is the class SGD"),
        (lambda net: (net, None), "optimizer: the second argument is of type NoneType"),
        (lambda net: (net, "2:4"), "optimizer: the second argument is of type str"),
        (lambda net: (net, list(net.parameters())), "optimizer: the second argument is of type list"),
        (lambda net: (net, net.parameters()), "optimizer: generator is no torch optimizer"),
        (
            lambda net: (net, torch.optim.lr_scheduler.StepLR(sgd(net), 1)),
            "optimizer: the second argument is of type StepLR",
        ),
        (lambda net: (net, torch.amp.GradScaler("cpu")), "optimizer: GradScaler is no torch optimizer"),
    ],
)
def test_swapped_and_foreign_objects(arguments, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        sparsify(*arguments(mlp()))
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_and_patterns_as_objects_are_fine():
    net = mlp()
    sparsifier = sparsify(
        net,
        sgd(net),
        NMPattern(2, 4),
        decay=np.float32(1e-3),
        mask_update_interval=np.int64(2),
        layer_patterns={"0": NMPattern(1, 4)},
    )
    assert {name: str(pattern) for name, pattern in sparsifier.patterns().items()} == {
        "0.weight": "1:4",
        "2.weight": "2:4",
    }
    assert (sparsifier.decay, sparsifier.mask_update_interval) == (pytest.approx(1e-3), 2)


@pytest.mark.parametrize("name", ["a[0]", "b*", "c?", "[d]"])
def test_a_name_with_the_signs_of_globs_means_itself(name):
    net = nn.ModuleDict({name: nn.Linear(16, 16), "e": nn.Linear(16, 16), "head": nn.Linear(16, 4)})
    sparsifier = sparsify(net, sgd(net), exclude=[name])
    assert set(sparsifier.patterns()) == {"e.weight"}
    assert next(entry for entry in sparsifier.report() if entry.module == name).reason == f"excluded by {name!r}"
    sparsifier = sparsify(net, sgd(net), layer_patterns={name: "1:4"})
    assert str(sparsifier.patterns()[f"{name}.weight"]) == "1:4"
    with pytest.raises(ConfigError, match=r"layer .*: reduction axis of 16 is no multiple of M = 5"):
        sparsify(net, sgd(net), layer_patterns={name: "1:5"})
    assert sparsifier.release_layers([name]) == [f"{name}.weight"]


def test_names_of_a_live_sparsifier():
    _, _, sparsifier = started()
    with pytest.raises(ConfigError, match="'0' is no list of names"):
        sparsifier.release_layers("0")
    with pytest.raises(ConfigError, match=r"no sparse layer matches '4'; the sparse layers are 0, 2"):
        sparsifier.release_layers(["4"])
    with pytest.raises(ConfigError, match="none of these names is a dense layer"):
        sparsifier.add_layers(["0"])
    with pytest.raises(ConfigError, match="layers '9': no layer can become sparse"):
        sparsifier.add_layers({"9": "2:4"})
