"""torchrun --max-restarts: one process of two is killed without a word, and the run ends in the same bytes."""

import json
import os
import subprocess

import pytest
import torch
from helpers import assert_one_error_line, forked_python, nm2trt_inline

from nm2trt.artifacts import RunDocument

NETWORK = '''
import os, signal
from torch import nn

class Net(nn.Module):
    """Its second process dies at a step of the second epoch, the first time that it comes there."""

    def __init__(self):
        super().__init__()
        linear = [nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)]
        self.body = nn.Sequential(nn.Flatten(), *linear)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0" and os.environ.get("RANK") == "1"
        if first and self.calls == int(os.environ["KILL_AT"]):
            with open("killed-at", "w") as file:
                file.write(str(self.calls))
            os.kill(os.getpid(), signal.SIGKILL)
        return self.body(x)
'''


def launch(folder, name, kill_at):
    """Two processes with 128 samples each: 5 steps an epoch."""
    (folder / "mortal.py").write_text(NETWORK)
    environment = {**os.environ, "KILL_AT": str(kill_at), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    python, environment = forked_python(environment)
    command = [
        *(python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"),
        *("-m", "nm2trt", "train", "--model", "mortal:Net", "--device", "cpu", "--epochs", "2"),
        *("--batch-size", "128", "--auto-resume", "-o", name),
    ]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="missing: torch.distributed")
def test_a_killed_process_costs_nothing_but_time(tmp_path):
    whole = launch(tmp_path, "whole", kill_at=-1)
    assert whole.returncode == 0, whole.stderr[-3000:]
    killed = launch(tmp_path, "killed", kill_at=8)
    assert killed.returncode == 0, killed.stderr[-3000:]
    # torchrun names the process that it sees end first, which may be the one that lost the killed one.
    assert (tmp_path / "killed-at").read_text() == "8", "nobody was killed"
    assert "resumed 1 time by as many processes" in killed.stdout
    documents = [RunDocument.read(tmp_path / name) for name in ("whole", "killed")]
    for file in ("checkpoint.safetensors", "sad.csv"):
        assert documents[0].files[file] == documents[1].files[file], file
    assert [session.from_step for session in documents[1].sessions] == [0, 5]
    rows = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["kind"] == "step"]
    assert steps == sorted(set(steps)), "a step was recorded twice"
    for result in (whole, killed):
        assert "destroy_process_group() was not called" not in result.stderr
        assert "terminate called" not in result.stderr


def test_auto_resume_starts_goes_on_and_takes_no_other_run(tmp_path):
    common = ("train", "--model", "mlp", "--device", "cpu", "--epochs", "2", "--batch-size", "512", "--auto-resume")
    assert nm2trt_inline(*common, "-o", tmp_path / "run").returncode == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    assert nm2trt_inline(*common, "-o", tmp_path / "run").returncode == 0
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    other = nm2trt_inline(*common, "--lr", "0.1", "-o", tmp_path / "run")
    assert_one_error_line(other, 2, "options differ from the original run: lr was 0.05, not 0.1")
    forced = nm2trt_inline(*common, "--force", "-o", tmp_path / "run")
    assert_one_error_line(forced, 2, "--auto-resume decides itself")
