"""Fine-tuning what is sparse already, whoever made it so, and merging LoRA into it."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_one_error_line, examples, nm2trt_inline
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_sparsifier import Net, batches_of, sgd, slow_keep, train

from nm2trt.errors import ConfigError
from nm2trt.models import build_model
from nm2trt.pattern import NMPattern
from nm2trt.training import merge_lora, sparsify
from nm2trt.training.config import load_config
from nm2trt.training.run import train as train_run

SPARSE = ("conv.weight", "fc.weight")


def pruned(pattern="2:4", dtype=torch.float64):
    """Pruned at places that magnitude would not choose: the smallest of each group stay."""
    torch.manual_seed(0)
    net = Net().to(dtype)
    with torch.no_grad():
        for name in SPARSE:
            weight = dict(net.named_parameters())[name]
            keep = slow_keep(1 / weight.detach().numpy(), NMPattern.parse(pattern))
            weight.mul_(torch.from_numpy(keep))
    return net


@pytest.mark.parametrize("made", ["2:4", "1:4"])
def test_masks_are_those_of_the_weights_and_stay(made):
    net = pruned(made)
    held = {name: (net.state_dict()[name] != 0).clone() for name in SPARSE}
    before = copy.deepcopy(net.state_dict())
    optimizer = sgd(net)
    sparsifier = sparsify(net, optimizer, "2:4", hold_masks=True)
    assert sparsifier.method == "asp"
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    train(net, optimizer, 5)
    for name in SPARSE:
        weight = net.state_dict()[name]
        assert torch.equal(sparsifier.masks()[name], held[name])
        assert torch.equal(weight != 0, held[name])
        assert not torch.equal(weight, before[name])
    assert sparsifier.record_sad().total.flips == 0


def test_the_update_is_sgd_on_the_kept_weights():
    net = pruned()
    weights = {name: value.detach().numpy().copy() for name, value in net.named_parameters()}
    held = {name: weights[name] != 0 for name in SPARSE}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsify(net, optimizer, "2:4", hold_masks=True)
    for x, y in batches_of(5):
        seen = {name: torch.tensor(value, requires_grad=True) for name, value in weights.items()}
        hidden = torch.tanh(F.conv2d(x, seen["conv.weight"], seen["conv.bias"], padding=1)).flatten(1)
        hidden = torch.tanh(F.linear(hidden, seen["fc.weight"], seen["fc.bias"]))
        loss = F.cross_entropy(F.linear(hidden, seen["head.weight"], seen["head.bias"]), y)
        for (name, value), g in zip(weights.items(), torch.autograd.grad(loss, list(seen.values())), strict=True):
            value -= 0.1 * g.numpy() * held.get(name, 1.0)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    for name, value in net.state_dict().items():
        np.testing.assert_allclose(value.numpy(), weights[name], rtol=0, atol=1e-12, err_msg=name)


def test_layers_that_are_not_sparse_are_listed_and_nothing_is_changed():
    net = pruned()
    with torch.no_grad():
        net.conv.weight[0, :3, 0, 0] = 1.0
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ConfigError, match=r"conv\.weight \(1 of 144 groups are not 2:4\)") as caught:
        sparsify(net, sgd(net), "2:4", hold_masks=True)
    assert "fc.weight" not in str(caught.value)
    assert "exclude" in caught.value.hint
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert sparsify(net, sgd(net), "2:4", hold_masks=True, exclude=["conv"]).masks().keys() == {"fc.weight"}


def test_a_sparsifier_that_was_there_before_hands_its_masks_over():
    torch.manual_seed(0)
    net = Net().double()
    optimizer = sgd(net)
    first = sparsify(net, optimizer, "2:4", "sr-ste")
    train(net, optimizer, 3)
    masks, weights = first.masks(), copy.deepcopy(net.state_dict())
    second = sparsify(net, optimizer, "2:4", hold_masks=True)
    for name, mask in second.masks().items():
        assert torch.equal(mask, masks[name])
    for name, value in net.state_dict().items():
        assert torch.equal(value, weights[name])


def test_another_method_cannot_hold_them():
    with pytest.raises(ConfigError, match="asp does, not sr-ste"):
        sparsify(pruned(), sgd(pruned()), "2:4", "sr-ste", hold_masks=True)


@pytest.mark.not_quick
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_the_command_fine_tunes_a_foreign_checkpoint_without_losing_its_masks(kind, tmp_path):
    torch.manual_seed(0)
    net = build_model("mlp", (1, 8, 8), 10)
    with torch.no_grad():
        for layer in (net.hidden1, net.hidden2):
            keep = slow_keep(1 / layer.weight.detach().numpy(), NMPattern(2, 4))
            layer.weight.mul_(torch.from_numpy(keep).float())
    file = tmp_path / f"foreign.{kind}"
    (save_file if kind == "safetensors" else torch.save)(net.state_dict(), file)
    options = {"model": "mlp", "epochs": 2, "device": "cpu", "init": file, "hold_masks": True, "freeze_epochs": 1}
    train_run(load_config(None, options), tmp_path / "run")
    tuned = build_model("mlp", (1, 8, 8), 10)
    from safetensors.torch import load_file

    tuned.load_state_dict(load_file(tmp_path / "run" / "checkpoint.safetensors"))
    for name in ("hidden1", "hidden2"):
        before, after = getattr(net, name).weight, getattr(tuned, name).weight
        assert torch.equal(after != 0, before != 0)
        assert not torch.equal(after, before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hold-masks"], "give their checkpoint as init"),
        (["--hold-masks", "--init", "x", "--method", "ste"], "method asp"),
        (["--hold-masks", "--init", "x", "--dense-epochs", "1"], "no dense_epochs"),
    ],
)
def test_options_that_do_not_go_with_it_are_one_line(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = nm2trt_inline("train", "--epochs", "3", *options, "-o", "run")
    assert_one_error_line(result, 2, words)
    assert not (tmp_path / "run").exists()


@examples(40)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 6),
    st.floats(-4, 4),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_merged_lora_is_base_plus_delta_where_kept_and_zero_elsewhere(seed, rows, groups, rank, scale, dtype):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, 4 * groups, generator=generator, dtype=torch.float64)
    base = (base * torch.from_numpy(slow_keep(base.numpy(), NMPattern(2, 4)))).to(dtype)
    a, b = torch.randn(rank, 4 * groups, generator=generator), torch.randn(rows, rank, generator=generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    delta = b.to(wide) @ a.to(wide)
    merged = merge_lora(base, a, b, scale)
    assert merged.dtype == dtype
    for place in np.ndindex(*base.shape):
        if base[place] == 0:
            assert merged[place] == 0
        else:
            assert merged[place] == (base[place].to(wide) + scale * delta[place]).to(dtype)
    assert ((merged != 0).unflatten(1, (-1, 4)).sum(2) <= 2).all()
    assert torch.equal(merge_lora(base, a, torch.zeros_like(b), scale), base)


@pytest.mark.parametrize(("a", "b"), [((2, 8), (2, 4)), ((8, 2), (4, 2)), ((2, 8), (4, 3)), ((2, 8, 1), (4, 2))])
def test_adapters_that_do_not_fit_are_refused(a, b):
    with pytest.raises(ConfigError, match="merge_lora"):
        merge_lora(torch.ones(4, 8), torch.ones(a), torch.ones(b), 1.0)
