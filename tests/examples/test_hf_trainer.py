"""`examples/hf_trainer.py` as a user runs it: 2:4 in every checkpoint of the Trainer, and resumable."""

import shutil
import subprocess
import sys

import pytest
import torch
from helpers import REPOSITORY
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="missing: transformers (pip install 'nm2trt[huggingface]')")


def example(folder, *options):
    script = REPOSITORY / "examples" / "hf_trainer.py"
    command = [sys.executable, script, "-o", folder, "--epochs", "3", *options]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def most_kept(weight):
    return max(
        sum(value != 0 for value in row[start : start + 4])
        for row in weight.tolist()
        for start in range(0, weight.shape[1], 4)
    )


def test_the_trainers_checkpoints_are_sparse_and_resumable(tmp_path):
    printed = example(tmp_path / "run")
    assert "12 weights are 2:4" in printed
    checkpoints = sorted((tmp_path / "run").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert [path.name for path in checkpoints] == ["checkpoint-22", "checkpoint-44", "checkpoint-66"]
    for checkpoint in checkpoints:
        weights = load_file(checkpoint / "model.safetensors")
        linear = {name: value for name, value in weights.items() if value.dim() == 2 and "classifier" not in name}
        assert len(linear) == 12
        assert {most_kept(value) for value in linear.values()} == {2}, checkpoint
        assert most_kept(weights["classifier.weight"]) == 4
    shutil.rmtree(checkpoints[-1])
    assert "12 weights are 2:4" in example(tmp_path / "run", "--resume")
    # The Trainer's own resumption is not exact, with or without us; what has to go on is the sparsifier's state.
    before, after = (torch.load(path / "sparsifier.pt", weights_only=True)["sparsifier"] for path in checkpoints[1:])
    assert (before["steps"], after["steps"]) == (44, 66)
    for name, layer in after["layers"].items():
        earlier = before["layers"][name]
        first_mask = 4
        assert torch.equal(layer["bits"] & first_mask, earlier["bits"] & first_mask), f"{name} began anew"
        assert layer["flips"] >= earlier["flips"] > 0
        assert layer["residual"].count_nonzero() > 0
