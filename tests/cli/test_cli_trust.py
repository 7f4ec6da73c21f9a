"""A run, a build and a state from a stranger: their code is not imported, in any command that would."""

import json
import sys

import pytest
from helpers import assert_one_error_line, nm2trt_inline

MODULE = """
from pathlib import Path
import torch
from torch import nn

(Path(__file__).parent / "imported").touch()

class Labeled(torch.utils.data.Dataset):
    classes = ["below", "above"]

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], int(self.y[i])

def net(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], 16), nn.ReLU(), nn.Linear(16, classes))

def data():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(96, 8, generator=random)
    y = (x.sum(dim=1) > 0).long()
    train, test = (Labeled(x[part], y[part]) for part in (slice(0, 64), slice(64, 96)))
    return train, test
"""


@pytest.fixture(scope="module")
def module_name():
    return "stranger_of_a_test"


@pytest.fixture
def trained(tmp_path, monkeypatch, module_name):
    """A run of a user's own network and data, trained on this machine, in the folder that holds the module."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop(module_name, None)
    (tmp_path / f"{module_name}.py").write_text(MODULE)
    result = nm2trt_inline(
        "train", "-o", tmp_path / "run", "--model", f"{module_name}:net", "--data", f"{module_name}:data",
        "--epochs", "1", "--batch-size", "32", "--warmup-epochs", "0",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return tmp_path / "run"


@pytest.fixture
def elsewhere(trained, tmp_path, monkeypatch, module_name):
    """The same machine to all but the state folder: as if the run had come in an archive."""
    sys.modules.pop(module_name, None)
    (tmp_path / "imported").unlink()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other_state"))
    return trained


def test_an_own_run_is_exported_where_it_was_trained(trained, tmp_path):
    result = nm2trt_inline("export", trained, "-o", tmp_path / "build", "--builder", "none")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "build" / "build.json").read_text())["source"]["data"].endswith(":data")


def test_a_strangers_run_imports_nothing_without_trust(elsewhere, tmp_path, module_name):
    result = nm2trt_inline("export", elsewhere, "-o", tmp_path / "build", "--builder", "none")
    assert_one_error_line(result, 3, "run.json", f"model {module_name}:net, data {module_name}:data", "--trust")
    assert not (tmp_path / "imported").exists()
    assert not (tmp_path / "build").exists()
    trusted = nm2trt_inline("export", elsewhere, "-o", tmp_path / "build", "--builder", "none", "--trust")
    assert trusted.returncode == 0, trusted.stderr
    assert (tmp_path / "imported").exists()


def test_a_changed_run_is_a_strangers(trained, tmp_path):
    path = trained / "run.json"
    path.write_text(path.read_text().replace(":net", ":other"))
    result = nm2trt_inline("export", trained, "-o", tmp_path / "build", "--builder", "none")
    assert_one_error_line(result, 3, ":other", "--trust")


def test_a_strangers_run_is_not_resumed_without_trust(elsewhere, tmp_path, module_name):
    (elsewhere / "run.json").unlink()
    result = nm2trt_inline("train", "-o", elsewhere, "--resume")
    assert_one_error_line(result, 3, "config.toml", f"{module_name}:net", "--trust")
    assert not (tmp_path / "imported").exists()


def test_files_that_a_strangers_config_names_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = tmp_path / "run"
    (run / "state").mkdir(parents=True)
    (run / "state" / "last.pt").write_bytes(b"")
    (run / "config.toml").write_text('data = "digits"\ninit = "/etc/hostname"\n')
    result = nm2trt_inline("train", "-o", run, "--resume")
    assert_one_error_line(result, 3, "init /etc/hostname", "--trust")


def test_a_strangers_build_feeds_no_server_check_with_its_code(trained, tmp_path, monkeypatch, module_name):
    build = tmp_path / "build"
    assert nm2trt_inline("export", trained, "-o", build, "--builder", "none").returncode == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other_state"))
    result = nm2trt_inline("check-server", "http://127.0.0.1:9", "m", "--build", build)
    assert_one_error_line(result, 3, "build.json", f"data {module_name}:data", "--trust")


def test_a_build_that_names_files_outside_is_refused(trained, tmp_path):
    build = tmp_path / "build"
    assert nm2trt_inline("export", trained, "-o", build, "--builder", "none").returncode == 0
    document = json.loads((build / "build.json").read_text())
    document["files"]["../secret.log"] = document["files"]["model.onnx"]
    (build / "build.json").write_text(json.dumps(document))
    for command in (["inspect", build], ["package", build, "-o", tmp_path / "repository"]):
        assert_one_error_line(nm2trt_inline(*command), 3, "../secret.log")
