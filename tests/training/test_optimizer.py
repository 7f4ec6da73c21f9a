import pytest
import torch
from torch import nn

from nm2trt.training.config import load_config
from nm2trt.training.optimizer import make_optimizer


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("sgd", torch.optim.SGD, {"lr": 0.3, "momentum": 0.8, "weight_decay": 0.02}),
        ("adamw", torch.optim.AdamW, {"lr": 0.3, "weight_decay": 0.02, "betas": (0.9, 0.999)}),
    ],
)
def test_the_named_optimizer_with_the_configurations_numbers(name, kind, settings):
    config = load_config(None, {"optimizer": name, "lr": 0.3, "momentum": 0.8, "weight_decay": 0.02})
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(config, model)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in settings} == settings
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in model.parameters()}
