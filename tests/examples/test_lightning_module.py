"""`examples/lightning_module.py` as a user runs it: trained, 2:4 in Lightning's checkpoint, and resumable."""

import runpy
import sys

import pytest
from helpers import REPOSITORY, nm2trt_inline

pytest.importorskip("lightning", reason="missing: lightning (pip install 'nm2trt[lightning]')")


@pytest.fixture
def example(monkeypatch, capsys):
    """The script as `python examples/lightning_module.py` runs it, without a second import of its libraries."""

    def run(folder, *options):
        script = str(REPOSITORY / "examples" / "lightning_module.py")
        monkeypatch.setattr(sys, "argv", [script, "-o", str(folder), *options])
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # seed_everything sets them for good
            monkeypatch.setenv(name, "0")
        runpy.run_path(script, run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_the_checkpoint_is_sparse_trained_and_resumable(tmp_path, example):
    assert "2 weights are 2:4 after 22 steps" in example(tmp_path, "--epochs", "1")
    printed = example(tmp_path, "--epochs", "3", "--resume")
    assert "2 weights are 2:4 after 66 steps" in printed
    assert float(printed[-1].split()[-1]) > 0.8
    result = nm2trt_inline("verify", tmp_path / "last.ckpt", "--require", "network.2.weight", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len([line for line in (tmp_path / "sad.csv").read_text().splitlines() if ",total," in line]) == 3
