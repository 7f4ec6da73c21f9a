"""`nm2trt train --fsdp`: two gloo processes with half of every weight each, against one process with all."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import assert_one_error_line, forked_python, nm2trt, nm2trt_inline
from safetensors.torch import load_file

from nm2trt.models import build_model

WORKER = Path(__file__).with_name("sharding_worker.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

needs_distributed = pytest.mark.skipif(not torch.distributed.is_available(), reason="missing: torch.distributed")


def run(*command):
    python, environment = forked_python(os.environ)
    result = subprocess.run(
        [python, *map(str, command)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def most_kept(weight):
    """Most non-zeros in four neighbors along axis 1, counted one group at a time."""
    rows = weight.movedim(1, -1).reshape(-1, weight.shape[1]).tolist()
    return max(sum(v != 0 for v in row[k : k + 4]) for row in rows for k in range(0, len(row), 4))


@needs_distributed
def test_sharded_the_command_trains_what_one_process_trains(tmp_path):
    common = ("train", "--model", "mlp", "--epochs", "2", "--device", "cpu", "--decay", "0.1")
    run(*TORCHRUN, "-m", "nm2trt", *common, "--fsdp", "--batch-size", 32, "-o", tmp_path / "two")
    assert nm2trt(*common, "--batch-size", 64, "-o", tmp_path / "one").returncode == 0
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    assert list(one) == list(two)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-4, msg=name)
    rows = {}
    for name in ("one", "two"):
        metrics = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        rows[name] = [row for row in metrics if row["kind"] == "epoch"]
    for key in ("train_loss", "test_loss", "test_score"):
        assert [row[key] for row in rows["two"]] == pytest.approx([row[key] for row in rows["one"]], abs=2e-3), key
    documents = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert documents[0]["model"] == documents[1]["model"]
    flips = [document["result"]["sad"]["cumulative"] for document in documents]
    assert flips[1] == pytest.approx(flips[0], rel=0.02)
    assert [most_kept(two[f"hidden{number}.weight"]) for number in (1, 2)] == [2, 2]


@needs_distributed
def test_a_sharded_run_is_resumed_to_the_same_whole_checkpoint(tmp_path):
    """With blocks that are sharded one by one, and batch norm, whose buffers are each process's own."""
    run(*TORCHRUN, WORKER, tmp_path)
    whole, resumed = (json.loads((tmp_path / name / "run.json").read_text())["files"] for name in ("whole", "cut"))
    for name in ("checkpoint.safetensors", "sad.csv"):
        assert whole[name]["sha256"] == resumed[name]["sha256"], name
    state = load_file(tmp_path / "whole" / "checkpoint.safetensors")
    bare = build_model("resnet8", (1, 8, 8), 10).state_dict()
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in bare.items()}
    assert {most_kept(value) for name, value in state.items() if name.startswith("layers") and value.dim() > 1} == {2}


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        (("--fsdp",), {}, ("--fsdp: there is one process", "torchrun")),
        (("--fsdp", "--precision", "fp16"), {"WORLD_SIZE": "2"}, ("fp16", "use --precision bf16")),
        ((), {"ACCELERATE_USE_FSDP": "true"}, ("--use_fsdp", "give nm2trt train --fsdp")),
    ],
)
def test_what_cannot_be_sharded_is_one_line(monkeypatch, tmp_path, options, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = nm2trt_inline("train", "--model", "mlp", *options, "-o", tmp_path / "run")
    assert_one_error_line(result, 2, *words)
    assert list(tmp_path.iterdir()) == []
