"""Checkpoints with the name of their network; everything is built here, nothing is fetched."""

import pytest
import torch
from run_folders import prune_slowly, random_network
from safetensors.torch import save_file

from nm2trt.errors import ConfigError, InputError
from nm2trt.export import InputSpec, export_source
from nm2trt.export.checkpoint import load_checkpoint

DIGITS = (InputSpec(name="input", shape=(1, 8, 8)),)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    module = random_network("mlp", classes=7)
    with torch.no_grad():
        module.hidden1.weight.copy_(prune_slowly(module.hidden1.weight))
    state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, folder / "m.safetensors")
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, folder / "m.pt"
    )
    return folder


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
def test_classes_and_pattern_are_read_off_the_weights(files, name):
    source = load_checkpoint(files / name, "mlp", inputs=DIGITS)
    assert source.module.head.out_features == 7
    assert source.patterns == {"hidden1.weight": "2:4"}
    assert not source.claimed
    assert (source.record.kind, source.record.name, source.record.pattern) == ("checkpoint", name, "2:4")


def test_what_the_name_does_not_tell_is_asked_for(files):
    with pytest.raises(ConfigError, match="--input-shape"):
        load_checkpoint(files / "m.pt", "mlp")
    with pytest.raises(ConfigError, match="--model"):
        export_source(files / "m.pt")
    with pytest.raises(ConfigError, match="unknown model"):
        load_checkpoint(files / "m.pt", "resnet9000", inputs=DIGITS)


def test_a_checkpoint_of_another_network_is_told_by_its_keys(files):
    with pytest.raises(InputError, match=r"lacks bn1\.bias.*holds head\.bias"):
        load_checkpoint(files / "m.pt", "resnet8", inputs=DIGITS)


def test_a_factory_of_the_users_own_is_called(files, tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from nm2trt.models import build_model\ndef make(input_shape):\n    return build_model('mlp', input_shape, 7)\n"
    )
    monkeypatch.chdir(tmp_path)
    source = load_checkpoint(files / "m.pt", "my_nets:make", inputs=DIGITS)
    assert source.module.head.out_features == 7


def test_an_input_that_forward_does_not_take_is_named(files):
    wrong = (InputSpec(name="picture", shape=(1, 8, 8), keyword=True),)
    with pytest.raises(ConfigError, match=r"takes no picture.*needs x_BCHW"):
        export_source(files / "m.pt", model="mlp", inputs=wrong)
