import pytest
import torch
from safetensors.torch import save_file

from nm2trt.errors import InputError
from nm2trt.models import build_model
from nm2trt.training.init import load_init


def network(seed=0, classes=10):
    torch.manual_seed(seed)
    return build_model("resnet8", (1, 8, 8), classes)


def same(model, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"momentum": torch.ones(2)}},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    ],
)
def test_torch_files_of_every_usual_shape(tmp_path, wrap):
    trained, fresh = network(1), network(2)
    torch.save(wrap(trained.state_dict()), tmp_path / "net.pt")
    assert not same(fresh, trained)
    load_init(fresh, tmp_path / "net.pt")
    assert same(fresh, trained)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "."])
def test_safetensors_and_run_folders(tmp_path, name):
    trained, fresh = network(1), network(2)
    save_file(trained.state_dict(), tmp_path / "checkpoint.safetensors")
    load_init(fresh, tmp_path / name)
    assert same(fresh, trained)


def test_half_precision_is_widened(tmp_path):
    trained, fresh = network(1), network(2)
    save_file(trained.half().state_dict(), tmp_path / "half.safetensors")
    load_init(fresh, tmp_path / "half.safetensors")
    assert fresh.fc.weight.dtype == torch.float32
    assert torch.equal(fresh.fc.weight, trained.fc.weight.float())


def test_every_difference_is_named_and_nothing_is_loaded(tmp_path):
    state = network(1, classes=7).state_dict()
    state["extra"] = torch.zeros(1)
    del state["bn1.bias"]
    torch.save(state, tmp_path / "net.pt")
    fresh = network(2)
    words = (
        r"lacks bn1.bias; it holds extra, which the network does not have; it fc.bias is \[7\] and not \[10\], "
        r"fc.weight is \[7, 64\] and not \[10, 64\]; give a checkpoint of the same --model"
    )
    with pytest.raises(InputError, match=words):
        load_init(fresh, tmp_path / "net.pt")
    assert same(fresh, network(2))


class Code:
    """Would run on load."""

    def __reduce__(self):
        return print, ("run",)


def test_code_in_a_pickle_never_runs(tmp_path, capsys):
    torch.save({"state_dict": network().state_dict(), "x": Code()}, tmp_path / "net.pt")
    with pytest.raises(InputError, match="not run"):
        load_init(network(), tmp_path / "net.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_files_that_are_missing_or_broken(tmp_path, name):
    with pytest.raises(InputError, match=f"{name}: no such checkpoint"):
        load_init(network(), tmp_path / name)
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=f"{name}: (is no complete torch file|no readable safetensors)"):
        load_init(network(), tmp_path / name)
