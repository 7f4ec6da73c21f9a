"""`examples/lightning_module.py` as a user runs it: trained, 2:4 in Lightning's checkpoint, and resumable."""

import subprocess
import sys

import pytest
from helpers import REPOSITORY, nm2trt_inline

pytest.importorskip("lightning", reason="missing: lightning (pip install 'nm2trt[lightning]')")


def example(folder, *options):
    command = [sys.executable, REPOSITORY / "examples" / "lightning_module.py", "-o", folder, *options]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()


def test_the_checkpoint_is_sparse_trained_and_resumable(tmp_path):
    assert "2 weights are 2:4 after 22 steps" in example(tmp_path, "--epochs", "1")
    printed = example(tmp_path, "--epochs", "3", "--resume")
    assert "2 weights are 2:4 after 66 steps" in printed
    assert float(printed[-1].split()[-1]) > 0.8
    result = nm2trt_inline("verify", tmp_path / "last.ckpt", "--require", "network.2.weight", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len([line for line in (tmp_path / "sad.csv").read_text().splitlines() if ",total," in line]) == 3
