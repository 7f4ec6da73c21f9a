import pytest
import torch
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.models import build_model, model_names


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_every_network_takes_every_image_size(name, shape):
    model = build_model(name, shape, 10).eval()
    assert model(torch.randn(3, *shape)).shape == (3, 10)


@pytest.mark.parametrize(("name", "layers"), [("resnet8", 8), ("resnet20", 20)])
def test_the_number_counts_weighted_layers_outside_shortcuts(name, layers):
    model = build_model(name, (3, 32, 32), 10)
    weighted = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(weighted) == layers


def test_resnet20_has_the_papers_size():
    """He et al. 2016, table 6: 0.27 million parameters on 32x32 colour images (there without shortcut weights)."""
    model = build_model("resnet20", (3, 32, 32), 10)
    parameters = sum(p.numel() for name, p in model.named_parameters() if "shortcut" not in name)
    assert parameters == pytest.approx(0.27e6, rel=0.01)


def test_wrong_names_and_shapes():
    with pytest.raises(ConfigError, match="choose from mlp, resnet20, resnet8"):
        build_model("resnet9000", (1, 8, 8), 10)
    with pytest.raises(ConfigError, match=r"images \[C, H, W\]"):
        build_model("resnet8", (64,), 10)
