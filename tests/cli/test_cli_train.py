import csv
import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from helpers import assert_one_error_line, nm2trt, nm2trt_inline
from safetensors import safe_open

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

QUICK = ("--model", "mlp", "--epochs", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short real run of the command."""
    folder = tmp_path_factory.mktemp("train") / "run"
    result = nm2trt("train", *QUICK, "--layer", "hidden2=1:4", "-o", folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_the_run_folder_holds_what_the_plan_names(run):
    folder, result = run
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint.safetensors",
        "config.toml",
        "curves.png",
        "metrics.jsonl",
        "run.json",
        "sad.csv",
        "state",
    }
    assert "test accuracy" in result.stdout
    assert "the classifier stays dense" in result.stdout
    assert result.stderr == ""


def test_the_checkpoint_is_a_plain_state_dict_that_is_sparse(run):
    folder, _ = run
    with safe_open(str(folder / "checkpoint.safetensors"), framework="np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
    assert json.loads(metadata["nm2trt.patterns"]) == {"hidden1.weight": "2:4", "hidden2.weight": "1:4"}
    assert set(tensors) == {
        f"{layer}.{part}" for layer in ("hidden1", "hidden2", "head") for part in ("weight", "bias")
    }
    for name, most in (("hidden1.weight", 2), ("hidden2.weight", 1)):
        for row in tensors[name]:
            for start in range(0, len(row), 4):
                assert sum(value != 0 for value in row[start : start + 4]) <= most
    assert np.count_nonzero(tensors["head.weight"]) == tensors["head.weight"].size


def test_records_agree_with_each_other(run):
    folder, _ = run
    document = json.loads((folder / "run.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [row["epoch"] for row in epochs] == [1, 2]
    assert epochs[-1]["test_score"] == document["result"]["test_score"] > 0.5
    with (folder / "sad.csv").open() as file:
        sad = list(csv.DictReader(file))
    layers = {row["layer"] for row in sad}
    assert layers == {"hidden1.weight", "hidden2.weight", "total"}
    last = [row for row in sad if row["epoch"] == "2"]
    total = int(next(row for row in last if row["layer"] == "total")["sad_start"])
    assert total == sum(int(row["sad_start"]) for row in last if row["layer"] != "total")
    assert total == document["result"]["sad"]["from_start"]
    assert {row["name"]: row["pattern"] for row in document["layers"]}["hidden2.weight"] == "1:4"
    for path in folder.iterdir():
        if path.is_file() and path.name != "run.json":
            assert document["files"][path.name]["size_bytes"] == path.stat().st_size


def test_the_written_configuration_gives_the_same_weights_again(run, tmp_path):
    folder, _ = run
    config = tomllib.loads((folder / "config.toml").read_text())
    assert config["layers"] == {"hidden2": "1:4"}
    result = nm2trt("train", "--config", folder / "config.toml", "-o", tmp_path / "again", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    first = json.loads((folder / "run.json").read_text())
    assert document["schema"] == "nm2trt.run/1"
    assert document["files"]["checkpoint.safetensors"] == first["files"]["checkpoint.safetensors"]


def test_a_dense_run_claims_no_pattern(tmp_path):
    result = nm2trt("train", *QUICK, "--method", "dense", "-o", tmp_path / "dense", "--json")
    document = json.loads(result.stdout)
    assert document["pattern"] is None
    assert all(layer["pattern"] is None for layer in document["layers"])
    assert document["result"]["sad"]["cumulative"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pattern", "4:2"], ["4:2 keeps 4 of every 2"]),
        (["--pattern", "2:3:4"], ["'2:3:4' is no N:M pattern"]),
        (["--pattern", "0:4"], ["0:4 keeps 0"]),
        (["--data", "imagenet2"], ["unknown data set 'imagenet2'", "digits, fashion-mnist, imagefolder"]),
        (["--model", "vgg"], ["unknown model 'vgg'"]),
        (["--method", "magic"], ["method = 'magic'"]),
        (["--epochs", "1", "--warmup-epochs", "3"], ["leaves nothing of 1 epochs"]),
        (["--pattern", "1:512"], ["no layer can be sparse"]),
        (["--exclude", "nope"], ["no layer matches 'nope'"]),
        (
            ["--epochs", "0", "--lr", "fast", "--data", "x", "--layer", "a=9:9"],
            ["4 mistakes", "epochs = '0'", "lr = 'fast'", "unknown data set", "9:9 keeps"],
        ),
    ],
)
def test_every_mistake_is_listed_at_once(tmp_path, options, words):
    result = nm2trt_inline("train", *QUICK[:2], *options, "-o", tmp_path / "run")
    assert_one_error_line(result, 2, *words)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept_and_force_replaces_our_own(run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert_one_error_line(nm2trt_inline("train", *QUICK, "-o", folder), 2, "exists", "--force")
    assert_one_error_line(nm2trt_inline("train", *QUICK, "-o", folder, "--force"), 2, "did not write")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_missing_configuration_and_a_broken_one(tmp_path):
    assert_one_error_line(nm2trt_inline("train", "--config", tmp_path / "no.toml", "-o", tmp_path / "r"), 3, "no such")
    broken = tmp_path / "broken.toml"
    broken.write_text("epochs = = 3")
    assert_one_error_line(nm2trt_inline("train", "--config", broken, "-o", tmp_path / "r"), 3, "no readable TOML")
    unknown = tmp_path / "unknown.toml"
    unknown.write_text("epoch = 3\nbatch = 2\n")
    assert_one_error_line(
        nm2trt("train", "--config", unknown, "-o", tmp_path / "r"), 2, "epoch: no such", "batch: no such"
    )


def test_divergence_is_a_bad_verdict_that_leaves_nothing(tmp_path):
    result = nm2trt_inline("train", *QUICK, "--lr", "1e20", "-o", tmp_path / "run")
    assert_one_error_line(result, 1, "the loss is", "lower --lr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="missing: POSIX file size limits")
def test_a_full_disk_leaves_nothing(tmp_path):
    """A file size limit fails writes as a full disk does, for this one process."""
    code = (
        "import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from nm2trt.cli.main import run\n"
        f"sys.exit(run(['train', '--model', 'mlp', '--epochs', '2', '-o', {str(tmp_path / 'run')!r}]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert_one_error_line(result, 4, "the disk is full")
    assert list(tmp_path.iterdir()) == []
