import sys

import pytest
import torch
from torch import nn

from nm2trt.errors import ConfigError, InputError, MachineError
from nm2trt.models import build_model, model_names


@pytest.mark.parametrize("name", [name for name in model_names() if name != "encoder-small"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_every_network_takes_every_image_size(name, shape):
    model = build_model(name, shape, 10).eval()
    assert model(torch.randn(3, *shape)).shape == (3, 10)


@pytest.mark.parametrize(
    ("name", "layers"), [("resnet8", 8), ("resnet20", 20), ("resnet32", 32), ("resnet56", 56), ("resnet18-cifar", 18)]
)
def test_the_number_counts_weighted_layers_outside_shortcuts(name, layers):
    model = build_model(name, (3, 32, 32), 10)
    weighted = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(weighted) == layers


def test_resnet20_has_the_papers_size():
    """He et al. 2016, table 6: 0.27 million parameters on 32x32 color images (there without shortcut weights)."""
    model = build_model("resnet20", (3, 32, 32), 10)
    parameters = sum(p.numel() for name, p in model.named_parameters() if "shortcut" not in name)
    assert parameters == pytest.approx(0.27e6, rel=0.01)


def test_the_encoder_answers_in_two_slots_for_each_position():
    model = build_model("encoder-small", (14, 28), 40).eval()
    x = torch.randn(3, 14, 28)
    assert model(x).shape == (3, 28, 40)
    moved = x.clone()
    moved[:, [0, 1]] = moved[:, [1, 0]]
    assert not torch.allclose(model(x)[:, 8:], model(moved)[:, 8:]), "positions matter, and all see each other"
    with pytest.raises(ConfigError, match=r"an encoder takes sequences \[L, features\], not \[1, 8, 8\]"):
        build_model("encoder-small", (1, 8, 8), 10)


def test_wrong_names_and_shapes():
    with pytest.raises(
        ConfigError, match=r"near it: resnet50.*choose from encoder-small, mlp, resnet18-cifar, resnet20, resnet32"
    ):
        build_model("resnet5000", (1, 8, 8), 10)
    with pytest.raises(ConfigError, match="unknown model 'torchvision:resnet8'"):
        build_model("torchvision:resnet8", (3, 32, 32), 10)
    with pytest.raises(ConfigError, match=r"images \[C, H, W\]"):
        build_model("resnet8", (64,), 10)


@pytest.mark.parametrize("name", ["resnet18", "torchvision:mobilenet_v3_small", "squeezenet1_1"])
def test_torchvisions_by_name(name):
    model = build_model(name, (3, 64, 64), 7).eval()
    assert model(torch.randn(3, 3, 64, 64)).shape == (3, 7)


def test_transformers_of_images_get_the_datas_size():
    model = build_model("vit_b_32", (3, 64, 64), 5).eval()
    assert model.encoder.pos_embedding.shape[1] == 1 + (64 // 32) ** 2
    with pytest.raises(ConfigError, match=r"vit_b_32 cannot take samples \[3, 60, 60\]: .*divisible"):
        build_model("vit_b_32", (3, 60, 60), 5)


def test_no_network_returns_a_tuple_in_training():
    model = build_model("googlenet", (3, 64, 64), 4)
    assert model.training
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 4)


@pytest.mark.parametrize(("name", "shape"), [("resnet18", (1, 28, 28)), ("alexnet", (3, 16, 16)), ("resnet18", (12,))])
def test_samples_that_do_not_fit_are_found_before_training(name, shape):
    with pytest.raises(
        ConfigError, match=rf"{name} cannot take samples \[{shape[0]}.*; choose another model"
    ) as caught:
        build_model(name, shape, 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mlp", "resnet8", "resnet18"])
def test_the_trial_changes_neither_network_nor_random_numbers(name):
    torch.manual_seed(0)
    model = build_model(name, (3, 32, 32), 10)
    after = torch.rand(3)
    assert model.training
    assert all(torch.equal(b, torch.zeros_like(b)) for n, b in model.named_buffers() if "running_mean" in n)
    torch.manual_seed(0)
    if name == "resnet18":
        import torchvision

        torchvision.models.resnet18(num_classes=10)
    else:
        from nm2trt.models.registry import _FACTORIES

        _FACTORIES[name]((3, 32, 32), 10)
    assert torch.equal(torch.rand(3), after)


FACTORIES = """
import torch
from torch import nn


def both(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), classes))


def neither():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def many(**offered):
    return both(**offered)


def more(input_shape, width):
    return None


def text():
    return "net"


class Pair(nn.Linear):
    def forward(self, x):
        return x, x


def pair():
    return Pair(2, 2)


def fails(classes):
    raise RuntimeError(f"{classes} is unlucky")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "my_own_nets.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_own_nets", None)


@pytest.mark.parametrize("function", ["both", "neither", "many"])
def test_a_factory_gets_the_keywords_that_it_takes(here, function):
    model = build_model(f"my_own_nets:{function}", (1, 8, 8), 10)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        ("more", ConfigError, "asks for width; it can have input_shape, classes"),
        ("text", InputError, "returned str; return a torch.nn.Module"),
        ("pair", ConfigError, "returns tuple and no tensor of logits"),
        ("fails", InputError, r"raised RuntimeError: 4 is unlucky \(.*my_own_nets.py, line \d+\)"),
        ("neither", ConfigError, r"maps \[2, 1, 8, 8\] to \[2, 10\], not to 2 x 4 logits"),
        ("absent", ConfigError, "has no 'absent'"),
    ],
)
def test_factories_that_do_not_fit(here, function, error, words):
    with pytest.raises(error, match=words):
        build_model(f"my_own_nets:{function}", (1, 8, 8), 4)


def test_timms_by_name():
    pytest.importorskip("timm", reason="missing: timm (pip install 'nm2trt[timm]')")
    assert build_model("timm:resnet10t", (1, 32, 32), 6).eval()(torch.randn(2, 1, 32, 32)).shape == (2, 6)
    assert build_model("timm:vit_tiny_patch16_224", (3, 64, 64), 6).eval()(torch.randn(2, 3, 64, 64)).shape == (2, 6)
    with pytest.raises(ConfigError, match="unknown model 'timm:resnet9000'"):
        build_model("timm:resnet9000", (3, 32, 32), 6)


def test_timm_that_is_absent_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MachineError, match=r"timm is not installed; pip install 'nm2trt\[timm\]'"):
        build_model("timm:resnet18", (3, 32, 32), 10)
