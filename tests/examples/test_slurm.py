"""`examples/slurm/train.sbatch` with stand-ins for SLURM: the time limit comes, the job queues again and ends."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY, forked_python

from nm2trt.artifacts import RunDocument

SCRIPT = REPOSITORY / "examples" / "slurm" / "train.sbatch"
NETWORK = '''
import os, time
from torch import nn

class Net(nn.Module):
    """Slow while the job runs for the first time, so that its time limit comes before its end."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, x):
        if self.training and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
            time.sleep(0.5)
        return self.body(x)
'''
SRUN = '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@"\n'
SCONTROL = """#!/bin/bash
echo "$*" >> "$CALLS"
if [ "$1" = show ]; then echo localhost; fi
"""


@pytest.fixture
def submit(tmp_path):
    """Start the script as SLURM does: one node with two processes, options behind the script's name."""
    commands = tmp_path / "bin"
    commands.mkdir()
    python, forking = forked_python(os.environ)
    torchrun = f'#!/bin/bash\nexec {python} -m torch.distributed.run "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("torchrun", torchrun)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    (tmp_path / "slow.py").write_text(NETWORK)

    def start(restarts, **changed):
        environment = {
            **forking,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(tmp_path / "calls"),
            "PYTHONPATH": str(tmp_path),
            "OMP_NUM_THREADS": "1",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node[1]",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_GPUS_ON_NODE": "2",
            "SLURM_RESTART_COUNT": str(restarts),
            "PORT": "0",
            "RUN": "run",
            **changed,
        }
        options = ["--model", "slow:Net", "--device", "cpu", "--epochs", "4", "--batch-size", "128"]
        return subprocess.Popen(
            ["bash", str(SCRIPT), *options],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def wait_for_a_step(job, metrics: Path, limit_s: float = 240) -> None:
    end = time.monotonic() + limit_s
    while not (metrics.is_file() and '"step"' in metrics.read_text()):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < end, "no step was trained"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="missing: torch.distributed")
def test_a_job_at_its_time_limit_saves_queues_again_and_ends(submit, tmp_path):
    first = submit(0)
    wait_for_a_step(first, tmp_path / "run" / "metrics.jsonl")
    first.send_signal(signal.SIGUSR1)
    _, said = first.communicate(timeout=240)
    assert first.returncode == 0, said
    assert (tmp_path / "calls").read_text().splitlines() == ["show hostnames node[1]", "requeue 7"]
    assert not (tmp_path / "run" / "run.json").is_file(), "the run ended before its time limit"

    second = submit(1)
    printed, said = second.communicate(timeout=240)
    assert second.returncode == 0, said
    assert "resumed 1 time by as many processes" in printed
    document = RunDocument.read(tmp_path / "run")
    assert [session.from_step > 0 for session in document.sessions] == [False, True]


def test_a_job_without_a_run_says_how_to_name_one(submit):
    job = submit(0, RUN="")
    _, said = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "RUN=runs/name sbatch" in said
