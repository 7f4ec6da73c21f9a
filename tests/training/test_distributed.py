"""Two gloo processes against one: same masks on every rank, lambda independent of the world size."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_what_one_trains(kind, alone, tmp_path):
    ranks = launch(kind, tmp_path, 2)
    for rank in ranks:
        torch.testing.assert_close(rank["losses"], alone["losses"], rtol=0, atol=1e-9)
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(rank["weights"][name], weight, rtol=0, atol=1e-9, msg=name)
            assert torch.equal(rank["weights"][name] != 0, weight != 0), name
        assert rank["sad"] == alone["sad"]
    assert alone["sad"]["total"][1] > 0
