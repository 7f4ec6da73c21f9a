"""`examples/ray_train.py` on a local Ray with two workers, one of which dies, against a plain loop in one process."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import REPOSITORY, nm2trt_inline
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn

from nm2trt.training import sparsify

EXAMPLES = REPOSITORY / "examples"
EPOCHS = 3


@pytest.fixture
def local_ray(tmp_path):
    """Environment of a Ray of the test's own, of which nothing is left afterwards."""
    # Importing ray would change this process's environment.
    if importlib.util.find_spec("ray") is None:
        pytest.skip("missing: ray (pip install 'nm2trt[ray]')")
    scratch = tempfile.mkdtemp(prefix="nm2trt-ray-")  # Ray's sockets lie here, whose paths have to be short.
    started = []

    def start(*arguments):
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "HOME": str(tmp_path),  # Ray keeps a token of authentication there.
            "PYTHONPATH": str(EXAMPLES),
            "RAY_TMPDIR": scratch,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            "RAY_worker_niceness": "0",
        }
        command = [sys.executable, *map(str, arguments)]
        started.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for driver in started:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)  # What Ray starts ends with the process that started it.
            driver.wait()
    end = time.monotonic() + 60
    while (left := processes_of(scratch)) and time.monotonic() < end:
        time.sleep(0.2)
    for process in left:
        os.kill(process, signal.SIGKILL)
    shutil.rmtree(scratch, ignore_errors=True)
    assert not left, "Ray left processes behind"


def processes_of(scratch):
    """Processes whose environment names the folder, which those of Ray inherit."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"RAY_TMPDIR={scratch}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def plain_loop():
    """The same training without Ray and DDP: whole batches in this process."""
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images / 16.0, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(digits.target)
    train = torch.randperm(len(x))[:1400]
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    sparsifier = sparsify(network, optimizer, "2:4", "sr-ste")
    for epoch in range(1, EPOCHS + 1):
        shuffled = train[torch.randperm(1400, generator=torch.Generator().manual_seed(epoch))]
        for batch in shuffled[: 1400 - 1400 % 128].split(128):
            optimizer.zero_grad()
            F.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network, sparsifier


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see that Ray has ended")
def test_two_workers_that_are_resumed_train_as_one_process_does(tmp_path, local_ray):
    driver = local_ray(REPOSITORY / "tests" / "examples" / "ray_driver.py", tmp_path)
    printed, said = driver.communicate(timeout=1800)
    assert driver.returncode == 0, printed[-2000:] + said[-4000:]
    first, second = json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "died").exists(), "the worker was to die"
    assert [(one["resumed_from"], one["epoch"], one["workers"]) for one in (first, second)] == [(0, 2, 2), (2, 3, 2)]

    network, sparsifier = plain_loop()
    found = load_file(Path(second["checkpoint"]) / "model.safetensors")
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
    state = torch.load(Path(second["checkpoint"]) / "state.pt", weights_only=True)["sparsifier"]
    assert state["steps"] == sparsifier.steps == EPOCHS * 10
    for name, residual in sparsifier.residuals().items():
        torch.testing.assert_close(state["layers"][name]["residual"], residual, rtol=1e-4, atol=1e-6)
        assert torch.equal(found[name] != 0, sparsifier.masks()[name])
    require = [option for name in sparsifier.patterns() for option in ("--require", name)]
    result = nm2trt_inline("verify", second["checkpoint"] + "/model.safetensors", *require)
    assert result.returncode == 0, result.stdout + result.stderr
