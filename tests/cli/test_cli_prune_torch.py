"""`nm2trt prune --data` on torch networks: runs, and checkpoints whose network is named."""

import json

import numpy as np
import pytest
from helpers import assert_one_error_line, nm2trt_inline

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.body(self.norm(self.stem(x)).relu()).flatten(2).transpose(1, 2)
        return self.fc(self.attention(x, x, x, need_weights=False)[0].mean(1))

def make():
    return Net()
"""
PRUNED = {"stem.weight", "body.weight", "attention.in_proj_weight", "attention.out_proj.weight"}


@pytest.fixture
def files(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import importlib

    module = importlib.import_module("own_net")
    torch.manual_seed(3)
    network = module.make().eval()
    save_file(network.state_dict(), tmp_path / "dense.safetensors")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 4, 6, 6)).astype(np.float32) * np.array([3, 1, 0.5, 0.1], np.float32)[:, None, None]
    np.savez(tmp_path / "data.npz", input=x, labels=rng.integers(0, 4, 60))
    yield network
    import sys

    sys.modules.pop("own_net")


def prune(output, *options):
    source = ("dense.safetensors", "--model", "own_net:make", "--input-shape", "4x6x6", "--data", "data.npz")
    return nm2trt_inline("prune", *source, "-o", output, *options)


def groups(weight, m=4):
    """Non-zeros of every group along the input channels, the second axis."""
    return (weight.movedim(1, -1).reshape(-1, m) != 0).sum(-1)


def test_a_checkpoint_is_pruned_and_says_what_it_lost(files, tmp_path):
    result = prune("out.safetensors")
    assert result.returncode == 0, result.stderr
    assert "PASS out.safetensors: 4 tensors pruned to 2:4 and verified, accuracy" in result.stdout
    before, after = load_file("dense.safetensors"), load_file("out.safetensors")
    assert set(before) == set(after)
    for name, values in after.items():
        if name in PRUNED:
            assert (groups(values) <= 2).all(), name
        else:
            assert torch.equal(values, before[name]), name
    document = json.loads((tmp_path / "out.prune.json").read_text())
    errors = {layer["name"]: layer["output"] for layer in document["layers"] if layer["output"]}
    assert set(errors) == PRUNED
    # The first layer sees the samples as they are, so that its error can be computed from both files alone.
    x = torch.from_numpy(np.load("data.npz")["input"])
    assert document["calibrated"]["samples"] == 48
    assert document["calibrated"]["agreement"]["samples"] == 12
    order = np.random.default_rng(0).permutation(60)
    seen = x[torch.from_numpy(np.sort(order[:48]))].double()

    def out(weights):
        return nn.functional.conv2d(seen, weights["stem.weight"].double(), padding=1)

    expected = (out(before) - out(after)).square().sum() / out(before).square().sum()
    assert errors["stem.weight"]["error"] == pytest.approx(float(expected), rel=1e-5)
    assert errors["stem.weight"]["error"] < errors["stem.weight"]["magnitude_error"]


def test_batch_norm_is_measured_again(files):
    result = prune("out.safetensors", "--recalibrate-bn", "--batch-size", "48")
    assert result.returncode == 0, result.stderr
    assert "batch norm: 1 of 1 recalibrated" in result.stdout
    after = load_file("out.safetensors")
    order = np.random.default_rng(0).permutation(60)
    x = torch.from_numpy(np.load("data.npz")["input"])[torch.from_numpy(np.sort(order[:48]))]
    y = nn.functional.conv2d(x, after["stem.weight"], padding=1)
    torch.testing.assert_close(after["norm.running_mean"], y.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after["norm.running_var"], y.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    dense = load_file("dense.safetensors")
    assert torch.equal(after["norm.num_batches_tracked"], dense["norm.num_batches_tracked"])


def test_the_most_sensitive_layers_stay_dense(files, tmp_path):
    document = json.loads(prune("a.safetensors", "--json").stdout)
    error = 100 * document["calibrated"]["relative_error"]
    np.savez("data.npz", input=np.load("data.npz")["input"])  # without labels the drop is the outputs' error
    limit = error / 2
    result = prune("out.safetensors", "--max-drop", f"{limit:.3f}", "--json")
    document = json.loads(result.stdout)
    if result.returncode == 1:
        assert "more than --max-drop" in document["problems"][0]
        assert not (tmp_path / "out.safetensors").exists()
        return
    calibrated = document["calibrated"]
    assert 100 * calibrated["relative_error"] <= limit
    assert (
        calibrated["kept_dense"]
        == [entry["layer"] for entry in calibrated["sensitivity"]][: len(calibrated["kept_dense"])]
    )
    before, after = load_file("dense.safetensors"), load_file("out.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in calibrated["kept_dense"])


def test_tensors_that_are_not_the_networks_stay_dense(files):
    tensors = load_file("dense.safetensors")
    save_file({**tensors, "other.weight": torch.randn(8, 8)}, "dense.safetensors")
    assert_one_error_line(prune("out.safetensors"), 3, "other.weight")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--exclude", "*"), 3, ("no weight can be pruned",)),
        (("--samples", "data.npz"), 2, ("--data and --samples",)),
        (("--damping", "2", "--calibration-samples", "0"), 2, ("--damping 2", "--calibration-samples 0")),
    ],
)
def test_mistakes_write_nothing(files, tmp_path, options, code, words):
    def files_there():
        return sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__")

    before = files_there()
    assert_one_error_line(prune("out.safetensors", *options), code, *words)
    assert files_there() == before


def test_a_checkpoint_needs_its_network_named(files):
    result = nm2trt_inline("prune", "dense.safetensors", "--data", "data.npz", "-o", "out.safetensors")
    assert_one_error_line(result, 2, "a checkpoint holds weights and no network", "--model")
    result = nm2trt_inline("prune", "dense.safetensors", "--model", "own_net:make", "-o", "out.safetensors")
    assert_one_error_line(result, 2, "--model needs samples")


def test_infinite_activations_are_named(files):
    x = np.load("data.npz")["input"]
    x[7] = np.inf
    np.savez("data.npz", input=x)
    assert_one_error_line(prune("out.safetensors"), 3, "stem.weight")


def test_statistics_of_a_pt_file_are_refused(files):
    torch.save(load_file("dense.safetensors"), "dense.pt")
    source = ("dense.pt", "--model", "own_net:make", "--input-shape", "4x6x6", "--data", "data.npz")
    result = nm2trt_inline("prune", *source, "--recalibrate-bn", "-o", "out.pt")
    assert_one_error_line(result, 3, "into .safetensors only")
    assert nm2trt_inline("prune", *source, "-o", "out.pt").returncode == 0
    after = torch.load("out.pt", weights_only=True)
    assert all((groups(after[name]) <= 2).all() for name in PRUNED)
