"""Run by test_resume_matrix.py: one run that 1, 2, 4 and 1 processes take up in turn, and the same run left alone.

Processes are forked from one that has imported torch already, since importing it takes longer than the training.
"""

import json
import os
import shutil
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.utils.flop_counter
from sklearn.datasets import load_digits
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.training.config import load_config, resumed_config
from nm2trt.training.interruption import InterruptedRunError
from nm2trt.training.processes import process_group_ends
from nm2trt.training.run import train

OPTIONS = {
    "model": "resume_worker:Net",
    "epochs": 3,
    "batch_size": 32,
    "optimizer": "adamw",
    "lr": 3e-3,
    "decay": 0.1,
    "device": "cpu",
}
STAGES = [(1, False, 20), (2, True, 60), (4, True, 110), (1, False, None)]
"""Processes, whether the weights are sharded, and the step after which the run is asked to stop."""


class Net(nn.Module):
    """In float64, so that only a real difference is one; 6 rows on 4 processes leave one of them without any."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 10)).double()

    def forward(self, x):
        return self.body(x.flatten(1).double())


def stage(folder, sharded, stop_after):
    def progress(done, _of, _words):
        if stop_after is not None and done >= stop_after:
            signal.raise_signal(signal.SIGTERM)

    resume = (folder / "config.toml").is_file()
    config = resumed_config(folder, {"fsdp": sharded}) if resume else load_config(None, OPTIONS)
    with process_group_ends():
        try:
            train(config, folder, resume=resume, progress=progress)
        except InterruptedRunError:
            return "stopped"
        except ConfigError as error:
            return str(error)
    return "ended"


def run_processes(count, folder, sharded, stop_after):
    """Fork, train, and return what each process had to say."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(count):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            if count > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            try:
                said = stage(folder, sharded, stop_after)
            except BaseException:  # noqa: BLE001 -- a child that goes on would run the whole test again
                traceback.print_exc()
                said = "crashed"
            os.write(writer, said.encode())
            os._exit(0)
        os.close(writer)
        children.append((child, reader))
    said = []
    for child, reader in children:
        os.waitpid(child, 0)
        with os.fdopen(reader) as pipe:
            said.append(pipe.read())
    return said


def main(folder):
    torch.set_num_threads(1)
    load_digits()
    os.environ["OMP_NUM_THREADS"] = "1"
    results = {"alone": run_processes(1, folder / "alone", False, None), "stages": [], "files": []}
    for count, sharded, stop_after in STAGES:
        results["stages"].append(run_processes(count, folder / "turns", sharded, stop_after))
        state = folder / "turns" / "state"
        results["files"].append(sorted(path.relative_to(state).as_posix() for path in state.rglob("*.*")))
        if count == 4:
            shutil.copytree(state, folder / "of-four")
            results["three"] = run_processes(3, folder / "turns", False, None)
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
