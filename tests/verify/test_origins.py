"""What verify says about where a checkpoint comes from and what mends it."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.nn.utils import parametrize, prune

from nm2trt.pattern import NMPattern, mask
from nm2trt.verify import verify_path

PATTERN = NMPattern(2, 4)


def dense(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def sparse(*shape, axis=1):
    weight = dense(*shape)
    return weight * mask(weight, PATTERN, axis)


def notes_of(tmp_path, **tensors):
    path = tmp_path / "model.safetensors"
    save_file({name.replace("__dot__", "."): value for name, value in tensors.items()}, path)
    document = verify_path(path, source="model.safetensors")
    return document, " | ".join(document.notes)


def test_a_dense_checkpoint_gets_the_prune_line_and_no_claim(tmp_path):
    document, notes = notes_of(tmp_path, fc__dot__weight=dense(64, 64))
    assert document.verdict == "fail"
    assert "never pruned" in notes
    assert "nm2trt prune model.safetensors --pattern 2:4 -o OUT" in notes


def test_weights_of_which_half_are_shrunk_look_like_sr_ste(tmp_path):
    weight = dense(64, 64, 3, 3)
    weight[~mask(weight, PATTERN, 1)] *= 0.05
    _, notes = notes_of(tmp_path, conv__dot__weight=weight)
    assert "SR-STE" in notes
    assert "look unused" in notes
    assert "nm2trt prune model.safetensors --pattern 2:4 -o OUT" in notes


def test_the_share_is_that_of_an_obvious_loop(tmp_path):
    weight = dense(8, 8, 1, 1)
    kept = total = 0.0
    for row in np.abs(weight[:, :, 0, 0]):
        for start in (0, 4):
            group = sorted(row[start : start + 4])
            kept += float(sum(group[2:]))
            total += float(sum(group))
    _, notes = notes_of(tmp_path, conv__dot__weight=weight)
    assert f"would keep {kept / total:.2f} of the magnitude" in notes


def test_the_wrong_axis_line_names_the_command(tmp_path):
    flat = dense(16, 8, 3, 3).reshape(16, -1)
    weight = (flat * mask(flat, PATTERN, 1)).reshape(16, 8, 3, 3)
    document, notes = notes_of(tmp_path, conv__dot__weight=weight)
    assert [layer.verdict for layer in document.layers] == ["wrong-axis"]
    assert "nm2trt prune model.safetensors --pattern 2:4 -o OUT" in notes


@pytest.mark.parametrize(
    ("name", "words"),
    [("fc.__weight_mma_mask", "from apex ASP: 1 layer"), ("fc._weight_mask", "from Model Optimizer: 1 layer")],
)
def test_masks_beside_dense_weights(name, words, tmp_path):
    weight = dense(8, 16)
    path = tmp_path / "model.safetensors"
    save_file({"fc.weight": weight, name: mask(weight, PATTERN, 1)}, path)
    document = verify_path(path)
    assert document.verdict == "pass"
    assert any(words in note for note in document.notes)


def test_torch_pruning_and_parametrizations(tmp_path):
    linear = torch.nn.Linear(16, 8)
    kept = torch.from_numpy(mask(linear.weight.detach().numpy(), PATTERN, 1))
    prune.custom_from_mask(linear, "weight", kept)
    torch.save(linear.state_dict(), tmp_path / "pruned.pt")
    document = verify_path(tmp_path / "pruned.pt")
    assert document.verdict == "pass"
    assert any("torch.nn.utils.prune.remove" in note for note in document.notes)

    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", kept)

        def forward(self, weight):
            return weight * self.mask

    linear = torch.nn.Linear(16, 8)
    parametrize.register_parametrization(linear, "weight", Masked())
    torch.save(linear.state_dict(), tmp_path / "parametrized.pt")
    document = verify_path(tmp_path / "parametrized.pt")
    assert document.verdict == "pass"
    assert any("remove_parametrizations" in note for note in document.notes)


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_mask_files_of_maskllm(good, packed, tmp_path):
    kept = mask(dense(16, 32), PATTERN, 1)
    if not good:
        kept[3, 4:7] = True
    names = ("model.layers.0.q_proj.weight.mask", "model.layers.0.mlp.mask.weight")
    if packed:
        path = tmp_path / "mask_compressed.npz"
        np.savez_compressed(path, **{name: np.packbits(kept) for name in names})
    else:
        path = tmp_path / "mask.pt"
        torch.save({name: torch.from_numpy(kept) for name in names}, path)
    document = verify_path(path)
    assert {layer.verdict for layer in document.layers} == {"conforms" if good else "violates"}
    assert {layer.density for layer in document.layers} == {float(kept.mean())}
    assert {layer.tensorrt.partition(":")[0] for layer in document.layers} == {"mask" if good else "not 2"}
    assert any("MaskLLM" in note for note in document.notes)
