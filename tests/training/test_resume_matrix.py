"""A run that goes on with another number of processes: 1, 2, 4 and 1 in turn, against the same run left alone."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import forked_python
from safetensors.torch import load_file

from nm2trt.artifacts import RunDocument

WORKER = Path(__file__).with_name("resume_worker.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="missing: torch.distributed"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    python, environment = forked_python(os.environ)
    command = [python, str(WORKER), str(folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads((folder / "results.json").read_text())
    expected = [["stopped"], ["stopped"] * 2, ["stopped"] * 4, ["ended"]]
    assert found["stages"] == expected, result.stderr[-3000:]
    assert found["alone"] == ["ended"]
    return folder, found


def epochs(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "epoch"]


def test_the_curve_is_that_of_one_process_left_alone(runs):
    folder, _ = runs
    alone, turns = epochs(folder / "alone"), epochs(folder / "turns")
    assert [row["step"] for row in turns] == [row["step"] for row in alone]
    for key in ("train_loss", "test_loss", "test_score", "lr"):
        assert [row[key] for row in turns] == pytest.approx([row[key] for row in alone], abs=1e-6), key
    weights = [load_file(folder / name / "checkpoint.safetensors") for name in ("alone", "turns")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=1e-6, msg=name)
        assert torch.equal(weights[1][name] != 0, weight != 0), name
    sad = [(folder / name / "sad.csv").read_text() for name in ("alone", "turns")]
    assert sad[0] == sad[1]


def test_the_record_says_who_trained_and_that_bytes_differ(runs):
    folder, _ = runs
    document = RunDocument.read(folder / "turns")
    # Together always 32 samples at a time.
    found = [(session.processes, session.batch_size, session.sharded) for session in document.sessions]
    assert found == [(1, 32, False), (2, 16, True), (4, 8, True), (1, 32, False)]
    steps = [session.from_step for session in document.sessions]
    assert steps[0] == 0
    assert steps == sorted(steps)
    assert not document.repeats_to_the_byte
    assert RunDocument.read(folder / "alone").repeats_to_the_byte


def test_each_process_writes_its_part_beside_the_whole_network(runs):
    folder, found = runs
    assert found["files"][0] == ["last.pt"]
    assert len(found["files"][2]) == 2 + 4
    assert {Path(name).suffix for name in found["files"][2]} == {".pt", ".safetensors"}
    (shards,) = (folder / "of-four").glob("step-*")
    network = load_file(shards / "model.safetensors")
    assert {name: tuple(value.shape) for name, value in network.items()} == {
        "body.0.weight": (16, 64),
        "body.0.bias": (16,),
        "body.2.weight": (6, 16),
        "body.2.bias": (6,),
        "body.4.weight": (10, 6),
        "body.4.bias": (10,),
    }
    most = max(
        sum(value != 0 for value in row[start : start + 4])
        for row in network["body.0.weight"].tolist()
        for start in range(0, 64, 4)
    )
    assert most == 2
    rows = sorted(
        tensor.shape[0]
        for path in shards.glob("shard-*")
        for name, tensor in load_file(path).items()
        if name.endswith("body.0.weight/residual")
    )
    assert rows == [4, 4, 4, 4]


def test_processes_that_cannot_share_the_samples_are_refused_alike(runs):
    _, found = runs
    (line,) = set(found["three"])
    assert "takes 32 samples at a time (4 processes with 8 each), which 3 processes cannot share evenly" in line
    assert line.endswith("start 1 or 2 or 4 processes")
