"""Two gloo processes against one, each method: same masks on every rank, lambda independent of the world size."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import forked_python
from safetensors.torch import load_file

from nm2trt.training.config import load_config
from nm2trt.training.run import train

WORKER = Path(__file__).with_name("distributed_worker.py")


def launch(kind, folder, processes):
    python, environment = forked_python(os.environ)
    result = subprocess.run(
        [
            *(python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
            *(str(WORKER), kind, str(folder)),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [torch.load(folder / f"{kind}-{rank}-of-{processes}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return launch("ddp", tmp_path_factory.mktemp("alone"), 1)[0]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="missing: torch.distributed")
@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "zero"])
def test_two_processes_train_what_one_trains(kind, alone, tmp_path):
    ranks = launch(kind, tmp_path, 2)
    assert set(alone) >= {"sr-ste", "s-ste", "step", "linear", "exponential", "structured"}
    for method, one in alone.items():
        for rank in ranks:
            two = rank[method]
            if kind == "zero" and method == "step":
                # Each process has the second moments of its own weights only.
                assert "ZeroRedundancyOptimizer" in two["refused"]
                assert two["default"] == "sr-ste"
                continue
            torch.testing.assert_close(two["losses"], one["losses"], rtol=0, atol=1e-9)
            for part in ("weights", "dense"):
                assert one[part].keys() == two[part].keys()
                for name, weight in one[part].items():
                    torch.testing.assert_close(two[part][name], weight, rtol=0, atol=1e-9, msg=f"{method} {name}")
            for name, mask in one["masks"].items():
                assert torch.equal(two["masks"][name], mask), f"{method} {name}"
                assert torch.equal(two["weights"][name] != 0, mask), f"{method} {name}"
            assert two["sad"] == one["sad"], method
        assert one["sad"]["total"][1] > 0, method
        assert all(mask.double().mean() == 0.5 for mask in one["masks"].values()), method


@pytest.mark.skipif(not torch.distributed.is_available(), reason="missing: torch.distributed")
@pytest.mark.parametrize("taught", [False, True])
def test_the_command_under_torchrun_trains_the_same_network(taught, tmp_path):
    """Two processes with batches of 32 are one with batches of 64; only the order of summation differs."""
    common = ("train", "--model", "mlp", "--epochs", "2", "--device", "cpu")
    if taught:
        dense = tmp_path / "dense"
        train(load_config(None, {"model": "mlp", "epochs": 2, "device": "cpu", "method": "dense", "seed": 1}), dense)
        common += ("--teacher", str(dense))
    python, environment = forked_python(os.environ)
    torchrun = (python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "nm2trt")
    alone = (python, "-m", "nm2trt")
    for start, size, name in ((torchrun, "32", "two"), (alone, "64", "one")):
        command = [*start, *common, "--batch-size", size, "-o", str(tmp_path / name)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.count("test accuracy") == 1
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-4, msg=name)
        assert torch.equal(two[name] != 0, weight != 0), name
    losses = []
    for name in ("one", "two"):
        teacher = json.loads((tmp_path / name / "run.json").read_text())["teacher"]
        assert (teacher is not None) == taught
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["train_loss"] for row in rows if row["kind"] == "epoch"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
