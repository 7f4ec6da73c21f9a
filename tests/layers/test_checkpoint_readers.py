"""Torch files, npz archives, shards and mask buffers, written by the tools themselves."""

import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize, prune

from nm2trt.errors import InputError
from nm2trt.layers import open_layers, open_source
from nm2trt.pattern import NMPattern, mask
from nm2trt.verify import verify_path

WEIGHT = torch.arange(32, dtype=torch.float32).reshape(4, 8)


def names(path):
    return sorted(layer.name for layer in open_layers(path))


@pytest.mark.parametrize(
    "content",
    [
        {"fc.weight": WEIGHT},
        {"state_dict": {"fc.weight": WEIGHT}, "epoch": 3, "optimizer": {"state": {0: {"momentum": WEIGHT}}}},
        {"model": {"fc.weight": WEIGHT}, "step": torch.tensor(3)},
        {"checkpoint": {"state_dict": {"fc.weight": WEIGHT}}},
        {"state_dict": {"module.fc.weight": WEIGHT}},
        {"_orig_mod.module.fc.weight": WEIGHT},
        nn.ModuleDict({"fc": nn.Linear(8, 4, bias=False)}).state_dict(),
    ],
)
# An old torch file without a suffix has nothing that tells it.
@pytest.mark.parametrize(
    ("name", "zipped"),
    [("model.pt", True), ("model.pt", False), ("model.pth", False), ("pytorch_model.bin", False), ("model", True)],
)
def test_state_dicts_however_they_are_wrapped(content, name, zipped, tmp_path):
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    layers = {layer.name: layer for layer in open_layers(tmp_path / name)}
    assert layers["fc.weight"].op == "linear"
    assert layers["fc.weight"].shape == (4, 8)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8]
)
def test_torch_values(dtype, tmp_path):
    weight = torch.tensor([[0.0, -0.0, 1.0, 2.0]] * 4).to(dtype)
    torch.save({"w.weight": nn.Parameter(weight, requires_grad=dtype.is_floating_point)}, tmp_path / "m.pt")
    (layer,) = open_layers(tmp_path / "m.pt")
    assert layer.dtype == str(dtype).removeprefix("torch.")
    assert layer.weight().astype(np.float32).tolist() == weight.to(torch.float32).tolist()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_pickle_never_runs(tmp_path):
    for zipped in (True, False):
        torch.save({"w": Evil(tmp_path / "ran")}, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match="which is not run") as caught:
            open_source(tmp_path / "evil.pt")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_torch_files_that_cannot_be_used(tmp_path):
    torch.save({"w": WEIGHT}, tmp_path / "whole.pt")
    raw = (tmp_path / "whole.pt").read_bytes()
    torch.save(nn.Linear(8, 4), tmp_path / "module.pt")
    torch.save({"epoch": 3}, tmp_path / "no-tensors.pt")
    (tmp_path / "cut.pt").write_bytes(raw[:-200])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("this is no checkpoint")
    for name in ("module", "no-tensors", "cut", "empty", "text"):
        with pytest.raises(InputError, match=f"{name}.pt") as caught:
            open_source(tmp_path / f"{name}.pt")
        assert "\n" not in str(caught.value)


def test_a_view_cannot_claim_more_memory_than_the_file_holds(tmp_path):
    torch.save({"w.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "huge.pt")
    (layer,) = open_layers(tmp_path / "huge.pt")
    with pytest.raises(InputError, match="larger than its data"):
        layer.weight()


# npz


def test_npz(tmp_path):
    arrays = {"block/fc.weight": np.ones((4, 8), np.float16), "bias": np.ones(4)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "m.npz", **arrays)
        layers = {layer.name: layer for layer in open_layers(tmp_path / "m.npz")}
        assert layers["block/fc.weight"].weight().tolist() == arrays["block/fc.weight"].tolist()
        assert layers["block/fc.weight"].dtype == "float16"
        assert layers["bias"].why_not


def test_npz_in_fortran_order_and_big_endian(tmp_path):
    weight = np.asfortranarray(np.arange(32).reshape(4, 8)).astype(">f4", order="F")
    np.savez(tmp_path / "m.npz", weight=weight)
    (layer,) = open_layers(tmp_path / "m.npz")
    assert layer.weight().tolist() == weight.tolist()


def test_npz_that_cannot_be_used(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, weight=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(InputError, match="holds objects"):
        open_source(path)
    np.savez(path, weight=np.ones((4, 8)))
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match=r"m\.npz"):
        open_source(path)
    with zipfile.ZipFile(path, "w") as archive:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"
        archive.writestr("w.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(InputError, match="lies about its size"):
        open_source(path)


# Hugging Face folders


def sharded(folder, **changes):
    save_file({"a.weight": WEIGHT}, folder / "model-00001-of-00002.safetensors")
    torch.save({"b.weight": WEIGHT}, folder / "pytorch_model-00002-of-00002.bin")
    weight_map = {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "pytorch_model-00002-of-00002.bin"}
    index = {"metadata": {"total_size": 256}, "weight_map": {**weight_map, **changes}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_are_one_checkpoint(tmp_path):
    assert names(sharded(tmp_path)) == ["a.weight", "b.weight"]
    assert names(tmp_path / "model.safetensors.index.json") == ["a.weight", "b.weight"]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors"])
def test_single_file_folders(name, tmp_path):
    (save_file if name.endswith("safetensors") else torch.save)({"a.weight": WEIGHT}, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    assert names(tmp_path) == ["a.weight"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"c.weight": "model-00001-of-00002.safetensors"}, "does not hold tensor 'c.weight'"),
        ({"c.weight": "gone.safetensors"}, "'gone.safetensors' is missing"),
        ({"c.weight": "../outside.safetensors"}, "is not beside the index"),
        ({"c.weight": "/etc/passwd"}, "is not beside the index"),
        ({"c.weight": 3}, "no weight_map"),
    ],
)
def test_an_index_that_lies(changes, words, tmp_path):
    with pytest.raises(InputError, match=words):
        open_source(sharded(tmp_path, **changes))


def test_an_index_that_is_no_json(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(InputError, match="JSON"):
        open_source(tmp_path)


# Masks beside the weights


def two_four_mask(weight):
    return torch.from_numpy(mask(weight.detach().numpy(), NMPattern(2, 4), 1))


def masked_by_torch_prune():
    layer = nn.Linear(8, 4)
    prune.custom_from_mask(layer, "weight", two_four_mask(layer.weight))
    return nn.ModuleDict({"fc": layer})


class Masking(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.register_buffer("mask", two_four_mask(weight))

    def forward(self, weight):
        return weight * self.mask


def masked_by_parametrization():
    layer = nn.Linear(8, 4)
    parametrize.register_parametrization(layer, "weight", Masking(layer.weight))
    return nn.ModuleDict({"fc": layer})


def masked_by_buffer(name):
    layer = nn.Linear(8, 4)
    layer.register_buffer(name, two_four_mask(layer.weight))
    return nn.ModuleDict({"fc": layer})


@pytest.mark.parametrize(
    ("network", "tool", "weight"),
    [
        (masked_by_torch_prune(), "torch.nn.utils.prune", "fc.weight_orig"),
        (masked_by_parametrization(), "a torch parametrization", "fc.parametrizations.weight.original"),
        (masked_by_buffer("__weight_mma_mask"), "apex ASP", "fc.weight"),
        (masked_by_buffer("_weight_mask"), "Model Optimizer", "fc.weight"),
    ],
)
def test_masks_are_applied_and_said(network, tool, weight, tmp_path):
    torch.save(network.state_dict(), tmp_path / "masked.pt")
    document = verify_path(tmp_path / "masked.pt")
    found = {layer.name: layer for layer in document.layers}
    assert document.verdict == "pass"
    assert [layer.name for layer in document.layers if layer.verdict == "conforms"] == [weight]
    assert tool in found[weight].note
    assert any("masks applied" in note for note in document.notes)
    # The same weights without the mask are dense: it is the mask that makes the verdict.
    alone = {key: value for key, value in network.state_dict().items() if not key.endswith("mask")}
    torch.save(alone, tmp_path / "alone.pt")
    assert verify_path(tmp_path / "alone.pt").verdict == "fail"


def test_torch_ao_keeps_its_masks_out_of_the_state_dict(tmp_path):
    from torch.ao.pruning import WeightNormSparsifier

    network = nn.Sequential(nn.Linear(8, 4))
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(network, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    torch.save(network.state_dict(), tmp_path / "unsquashed.pt")
    document = verify_path(tmp_path / "unsquashed.pt")
    (weight,) = (layer for layer in document.layers if "original" in layer.name)
    assert (document.verdict, weight.verdict) == ("fail", "dense")
    assert "squash_mask" in weight.note
    sparsifier.squash_mask()
    torch.save(network.state_dict(), tmp_path / "squashed.pt")
    assert verify_path(tmp_path / "squashed.pt").verdict == "pass"
