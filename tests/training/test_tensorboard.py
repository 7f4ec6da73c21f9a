"""What `--tensorboard` writes, read back by TensorBoard's own reader."""

import csv
import json
import sys

import pytest
from helpers import assert_one_error_line, nm2trt_inline

from nm2trt.training.config import load_config
from nm2trt.training.run import train

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="missing: tensorboard"
)

OPTIONS = {"model": "mlp", "device": "cpu", "batch_size": 128, "epochs": 4, "decay": 0.1}


class Cut(BaseException):
    """Stands for whatever ends a process."""


def scalars(folder):
    """{tag: [(step, value), ...]} of everything in the folder, nothing thinned out."""
    reader = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={accumulator.SCALARS: 0})
    reader.Reload()
    tags = reader.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in tags}


def close(value):
    return pytest.approx(float(value), rel=1e-6)


def test_the_event_file_holds_the_runs_records(tmp_path):
    train(load_config(None, OPTIONS | {"tensorboard": True}), tmp_path / "run")
    found = scalars(tmp_path / "run")
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [row for row in metrics if row["kind"] == "epoch"]
    steps = [row for row in metrics if row["kind"] == "step"]
    for tag, rows, key in (
        ("loss/batch", steps, "loss"),
        ("learning_rate", steps, "lr"),
        ("loss/train", epochs, "train_loss"),
        ("loss/test", epochs, "test_loss"),
        ("score/accuracy", epochs, "test_score"),
    ):
        assert found[tag] == [(row["step"], close(row[key])) for row in rows], tag
    with (tmp_path / "run" / "sad.csv").open() as file:
        sad = list(csv.DictReader(file))
    for layer in ("hidden1.weight", "hidden2.weight", "total"):
        rows = [row for row in sad if row["layer"] == layer]
        for kind in ("previous", "start"):
            expected = [(int(row["step"]), close(row[f"sad_{kind}_normalized"])) for row in rows]
            assert found[f"sad_{kind}/{layer}"] == expected
        flips, step = 0, 0
        for row, (at, rate) in zip(rows, found[f"flip_rate/{layer}"], strict=True):
            now = int(row["flips_cumulative"])
            assert (at, rate) == (
                int(row["step"]),
                close((now - flips) / int(row["weights"]) / (int(row["step"]) - step)),
            )
            flips, step = now, at
    totals = [(int(row["step"]), int(row["sad_previous"])) for row in sad if row["layer"] == "total"]
    assert found["sad_previous_bits/total"] == totals
    assert not any(
        name.startswith("tensorboard") for name in json.loads((tmp_path / "run/run.json").read_text())["files"]
    )


@pytest.mark.parametrize("method", ["sr-ste", "asp"])
def test_a_resumed_run_goes_on_without_a_step_twice(tmp_path, method):
    config = load_config(None, OPTIONS | {"tensorboard": True, "method": method})
    train(config, tmp_path / "whole")

    def cut(done, _of, _words):
        if done == 33:
            raise Cut

    with pytest.raises(Cut):
        train(config, tmp_path / "cut", progress=cut)
    before = scalars(tmp_path / "cut")
    assert before["loss/batch"][-1][0] > before["loss/train"][-1][0], "nothing was written beyond the last state"
    train(config, tmp_path / "cut", resume=True)
    assert scalars(tmp_path / "cut") == scalars(tmp_path / "whole")
    assert all(value >= 0 for _, value in scalars(tmp_path / "cut")["flip_rate/total"])


def test_without_the_package_one_line_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = nm2trt_inline("train", "--model", "mlp", "--tensorboard", "-o", tmp_path / "run")
    assert_one_error_line(result, 4, "TensorBoard is not installed", "pip install 'nm2trt[tensorboard]'")
    assert list(tmp_path.iterdir()) == []
