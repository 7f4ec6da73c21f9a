"""Two gloo processes against one: same masks on every rank, lambda independent of the world size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("distributed_worker.py")


def launch(kind, folder, processes):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
            *(str(WORKER), kind, str(folder)),
        ],
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
    for rank in ranks:
        torch.testing.assert_close(rank["losses"], alone["losses"], rtol=0, atol=1e-9)
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(rank["weights"][name], weight, rtol=0, atol=1e-9, msg=name)
            assert torch.equal(rank["weights"][name] != 0, weight != 0), name
        assert rank["sad"] == alone["sad"]
    assert alone["sad"]["total"][1] > 0


@pytest.mark.skipif(not torch.distributed.is_available(), reason="missing: torch.distributed")
def test_the_command_under_torchrun_trains_the_same_network(tmp_path):
    """Two processes with batches of 32 are one with batches of 64; only the order of summation differs."""
    common = ("train", "--model", "mlp", "--epochs", "2", "--device", "cpu")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "nm2trt")
    alone = (sys.executable, "-m", "nm2trt")
    for start, size, name in ((torchrun, "32", "two"), (alone, "64", "one")):
        command = [*start, *common, "--batch-size", size, "-o", str(tmp_path / name)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.count("test accuracy") == 1
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-4, msg=name)
    losses = []
    for name in ("one", "two"):
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["train_loss"] for row in rows if row["kind"] == "epoch"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
