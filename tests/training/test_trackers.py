"""What `--log-with` writes, read back by each tracker's own reader or from its files."""

import csv
import json
import logging
import os
import struct
import subprocess
import sys
import time

import pytest
import torch
from accelerate import tracking
from helpers import assert_one_error_line, nm2trt_inline

from nm2trt.errors import ConfigError, InputError, MachineError
from nm2trt.training.config import load_config
from nm2trt.training.run import train

OPTIONS = {"model": "mlp", "device": "cpu", "batch_size": 128, "epochs": 4, "decay": 0.1}
CUT_AT = 33
"""In the fourth epoch, beyond the state of the third; an epoch has 10 steps."""


class Cut(BaseException):
    """Stands for whatever ends a process."""


def cut(done, _of, _words):
    if done == CUT_AT:
        raise Cut


def options(**more):
    return load_config(None, OPTIONS | more)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def expected(folder):
    """{scalar: [(step, value), ...]} from metrics.jsonl and sad.csv, flip rates left out."""
    rows = metrics(folder)
    epochs = [row for row in rows if row["kind"] == "epoch"]
    steps = [row for row in rows if row["kind"] == "step"]
    found = {
        tag: [(row["step"], close(row[key])) for row in of]
        for tag, of, key in (
            ("loss/batch", steps, "loss"),
            ("learning_rate", steps, "lr"),
            ("loss/train", epochs, "train_loss"),
            ("loss/test", epochs, "test_loss"),
            ("score/accuracy", epochs, "test_score"),
        )
    }
    for row in sad_rows(folder):
        for kind in ("previous", "start"):
            tag = f"sad_{kind}/{row['layer']}"
            found.setdefault(tag, []).append((int(row["step"]), close(row[f"sad_{kind}_normalized"])))
        if row["layer"] == "total":
            found.setdefault("sad_previous_bits/total", []).append((int(row["step"]), int(row["sad_previous"])))
    return found


def sad_rows(folder):
    with (folder / "sad.csv").open() as file:
        return list(csv.DictReader(file))


def close(value):
    return pytest.approx(float(value), rel=1e-6)


def without_rates(scalars):
    return {tag: values for tag, values in scalars.items() if not tag.startswith("flip_rate/")}


def event_scalars(folder):
    """{tag: [(step, value), ...]} of everything in TensorBoard's folder, nothing thinned out."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="missing: tensorboard"
    )
    reader = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={accumulator.SCALARS: 0})
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


@pytest.mark.parametrize("asked", [{"tensorboard": True}, {"log_with": ["tensorboard", "tensorboard"]}])
def test_the_event_file_holds_the_runs_records(tmp_path, asked):
    pytest.importorskip("tensorboard", reason="missing: tensorboard")
    train(options(**asked), tmp_path / "run")
    found = event_scalars(tmp_path / "run")
    assert without_rates(found) == expected(tmp_path / "run")
    for layer in ("hidden1.weight", "hidden2.weight", "total"):
        flips, step = 0, 0
        rows = [row for row in sad_rows(tmp_path / "run") if row["layer"] == layer]
        for row, (at, rate) in zip(rows, found[f"flip_rate/{layer}"], strict=True):
            now = int(row["flips_cumulative"])
            assert (at, rate) == (
                int(row["step"]),
                close((now - flips) / int(row["weights"]) / (int(row["step"]) - step)),
            )
            flips, step = now, at
    (stored,) = (tmp_path / "run" / "tensorboard").rglob("hparams.yml")
    assert "model: mlp" in stored.read_text().splitlines()
    assert not any(
        name.startswith("tensorboard") for name in json.loads((tmp_path / "run/run.json").read_text())["files"]
    )


@pytest.mark.parametrize("method", ["sr-ste", "asp"])
def test_a_resumed_run_goes_on_in_tensorboard_without_a_step_twice(tmp_path, method):
    pytest.importorskip("tensorboard", reason="missing: tensorboard")
    config = options(tensorboard=True, method=method)
    train(config, tmp_path / "whole")
    with pytest.raises(Cut):
        train(config, tmp_path / "cut", progress=cut)
    before = event_scalars(tmp_path / "cut")
    assert before["loss/batch"][-1][0] > before["loss/train"][-1][0], "nothing was written beyond the last state"
    train(config, tmp_path / "cut", resume=True)
    assert event_scalars(tmp_path / "cut") == event_scalars(tmp_path / "whole")
    assert all(value >= 0 for _, value in event_scalars(tmp_path / "cut")["flip_rate/total"])
    assert len(list((tmp_path / "cut" / "tensorboard").rglob("hparams.yml"))) == 1


def mlflow_runs(store):
    """{run name: (parameters, {metric: [(step, value), ...]})} of a store."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    found = {}
    for run in client.search_runs([one.experiment_id for one in client.search_experiments()]):
        names = run.data.metrics
        history = {name: client.get_metric_history(run.info.run_id, name) for name in names}
        found.setdefault(run.info.run_name, []).append(
            (run.data.params, {name: [(m.step, m.value) for m in rows] for name, rows in history.items()})
        )
    return found


@pytest.fixture
def mlflow_store(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="missing: mlflow (pip install 'nm2trt[mlflow]')")
    store = (tmp_path / "mlruns").as_uri()
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TAGS", "MLFLOW_NESTED_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return store


def test_mlflow_holds_the_records_and_a_resumed_run_goes_on_in_the_same_one(tmp_path, mlflow_store):
    config = options(log_with=["mlflow"])
    with pytest.raises(Cut):
        train(config, tmp_path / "cut", progress=cut)
    (before,) = mlflow_runs(mlflow_store)["cut"]
    assert before[1]["loss/batch"][-1][0] > before[1]["loss/train"][-1][0], "nothing was written beyond the last state"
    train(config, tmp_path / "cut", resume=True)
    runs = mlflow_runs(mlflow_store)
    assert list(runs) == ["cut"]
    (found,) = runs["cut"]
    assert without_rates(found[1]) == expected(tmp_path / "cut")
    assert found[0]["method"] == "sr-ste"
    assert found[0]["log_with"] == '["mlflow"]'


def test_a_tracker_can_join_a_run_that_is_resumed(tmp_path, mlflow_store):
    with pytest.raises(Cut):
        train(options(), tmp_path / "run", progress=cut)
    train(options(log_with=["mlflow"]), tmp_path / "run", resume=True)
    (found,) = mlflow_runs(mlflow_store)["run"]
    whole = expected(tmp_path / "run")
    assert found[1]["loss/train"] == whole["loss/train"][-1:]
    assert found[0]["epochs"] == "4"


def wandb_records(file):
    """The records of one of wandb's files: a log of blocks of 32 KiB, as LevelDB's, behind 7 bytes of its own."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if at > len(data):
            return
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def whole_wandb_file(file):
    """The records, once the last is there: wandb's own process writes on behind the end of a run."""
    for _ in range(600):
        if (records := list(wandb_records(file))) and records[-1].HasField("exit"):
            return records
        time.sleep(0.1)
    pytest.fail(f"wandb has not written the end of {file}")


def wandb_run(folder):
    """(ids, parameters, {scalar: [(step, value), ...]}) of all of wandb's offline files in the folder."""
    ids, settings, scalars = set(), {}, {}
    for one in sorted(folder.glob("wandb/offline-run-*")):
        for record in whole_wandb_file(next(one.glob("run-*.wandb"))):
            if record.HasField("run"):
                ids.add((record.run.run_id, record.run.display_name, record.run.project))
            configs = [record.config, record.run.config]
            for entry in (entry for config in configs for entry in config.update):
                settings[entry.key or "/".join(entry.nested_key)] = json.loads(entry.value_json)
            if record.HasField("history"):
                step = record.history.step.num
                for item in record.history.item:
                    tag = item.key or "/".join(item.nested_key)
                    if not tag.startswith("_"):
                        scalars.setdefault(tag, []).append((step, json.loads(item.value_json)))
    return ids, settings, scalars


def test_wandb_holds_the_records_and_a_resumed_run_has_the_same_id(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="missing: wandb (pip install 'nm2trt[wandb]')")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    config = options(log_with=["wandb"])
    with pytest.raises(Cut):
        train(config, tmp_path / "cut", progress=cut)
    before = wandb_run(tmp_path)[2]
    assert before["loss/batch"][-1][0] > before["loss/train"][-1][0], "nothing was written beyond the last state"
    train(config, tmp_path / "cut", resume=True)
    # Ends its service process, whose address it keeps in the environment.
    wandb.teardown()
    ids, settings, scalars = wandb_run(tmp_path)
    ((_, name, project),) = ids
    assert (name, project) == ("cut", "nm2trt")
    assert without_rates(scalars) == expected(tmp_path / "cut")
    assert settings["pattern"] == "2:4"


class _Memory(tracking.GeneralTracker):
    """Keeps what it is told; what is in `fails` raises."""

    name, requires_logging_directory = "aim", True
    told, fails = [], {}

    def __init__(self, run_name, logging_dir, **_kwargs):
        super().__init__()
        self.run_name = run_name

    @property
    def tracker(self):
        return self

    def _meet(self, what):
        _Memory.told.append(what)
        if what[0] in self.fails and self.fails[what[0]](what):
            raise RuntimeError("the server is gone\nand more lines")

    def start(self):
        self._meet(("start", self.run_name))

    def store_init_configuration(self, values):
        self._meet(("configuration", values))

    def log(self, values, step=None, **_kwargs):
        self._meet(("log", step, values))

    def finish(self):
        self._meet(("finish",))


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "aim", _Memory)
    monkeypatch.setattr("nm2trt.training.trackers.is_missing", lambda name: False)
    monkeypatch.setattr(_Memory, "told", [])
    monkeypatch.setattr(_Memory, "fails", {})
    return _Memory


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "nm2trt.training.trackers"]


def test_a_tracker_that_fails_in_the_middle_costs_one_line_and_no_training(tmp_path, memory, caplog):
    pytest.importorskip("tensorboard", reason="missing: tensorboard")
    memory.fails["log"] = lambda what: what[1] >= 20
    with caplog.at_level(logging.WARNING):
        train(options(log_with=["aim", "tensorboard"]), tmp_path / "run")
    (line,) = warnings_of(caplog)
    assert line.startswith("aim failed at step ")
    assert line.endswith("the training goes on without it: the server is gone")
    assert [what[1] >= 20 for what in memory.told if what[0] == "log"].count(True) == 1
    assert without_rates(event_scalars(tmp_path / "run")) == expected(tmp_path / "run"), "the other went on"
    train(options(), tmp_path / "plain")
    names = ["checkpoint.safetensors", "sad.csv"]
    assert [(tmp_path / "run" / n).read_bytes() for n in names] == [
        (tmp_path / "plain" / n).read_bytes() for n in names
    ]


def test_a_tracker_that_cannot_start_ends_a_new_run_at_once_and_leaves_nothing(tmp_path, memory):
    memory.fails["start"] = lambda what: True
    with pytest.raises(MachineError, match="aim cannot start: the server is gone; "):
        train(options(log_with=["aim"]), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert [what[0] for what in memory.told] == ["start", "finish"]


def test_a_tracker_that_cannot_start_again_costs_no_resumed_run(tmp_path, memory, caplog):
    config = options(log_with=["aim"])
    with pytest.raises(Cut):
        train(config, tmp_path / "run", progress=cut)
    memory.fails["start"] = lambda what: True
    with caplog.at_level(logging.WARNING):
        train(config, tmp_path / "run", resume=True)
    (line,) = warnings_of(caplog)
    assert line == "aim cannot start, the training goes on without it: the server is gone"


def test_a_tracker_without_ids_is_told_each_step_once_over_all_sessions(tmp_path, memory, caplog):
    config = options(log_with=["aim"])
    with pytest.raises(Cut):
        train(config, tmp_path / "run", progress=cut)
    memory.fails["finish"] = lambda what: True
    with caplog.at_level(logging.WARNING):
        train(config, tmp_path / "run", resume=True)
    (line,) = warnings_of(caplog)
    assert line.startswith("aim cannot finish its run")
    found = {}
    for what in memory.told:
        for tag, value in what[2].items() if what[0] == "log" else ():
            found.setdefault(tag, []).append((what[1], value))
    assert without_rates(found) == expected(tmp_path / "run")
    assert [what[0] for what in memory.told if what[0] != "log"] == [
        *("start", "configuration", "finish"),
        *("start", "finish"),
    ]
    assert all(
        value is None or isinstance(value, bool | int | float | str)
        for what in memory.told
        if what[0] == "configuration"
        for value in what[1].values()
    )


def test_what_was_told_is_never_guessed(tmp_path, memory):
    config = options(log_with=["aim"])
    with pytest.raises(Cut):
        train(config, tmp_path / "run", progress=cut)
    (tmp_path / "run/trackers.json").write_text("[")
    with pytest.raises(InputError, match=r"trackers\.json: cannot be read: .*; remove it"):
        train(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tensorboard", "pip install 'nm2trt[tensorboard]'"),
        ("mlflow", "pip install 'nm2trt[mlflow]'"),
        ("wandb", "pip install 'nm2trt[wandb]'"),
        ("comet_ml", "pip install comet-ml"),
    ],
)
def test_without_the_library_one_line_says_how_to_install_it(monkeypatch, tmp_path, module, line):
    monkeypatch.setitem(sys.modules, module, None)
    result = nm2trt_inline("train", "--model", "mlp", "--log-with", module, "-o", tmp_path / "run")
    assert_one_error_line(result, 4, f"{module} is not installed", line)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_that_name_is_no_library(monkeypatch, tmp_path):
    from nm2trt.extras import is_missing

    (tmp_path / "swanlab_left_this").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert is_missing("swanlab_left_this")


def test_the_old_option_says_the_same(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = nm2trt_inline("train", "--model", "mlp", "--tensorboard", "-o", tmp_path / "run")
    assert_one_error_line(result, 4, "tensorboard is not installed", "pip install 'nm2trt[tensorboard]'")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_is_a_mistake_of_usage():
    with pytest.raises(ConfigError, match=r"log_with.0 = 'excel': .*'mlflow'"):
        options(log_with=["excel"])


@pytest.mark.skipif(not torch.distributed.is_available(), reason="missing: torch.distributed")
def test_of_two_processes_the_first_one_records(tmp_path):
    pytest.importorskip("tensorboard", reason="missing: tensorboard")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("-m", "nm2trt", "train", "--model", "mlp", "--device", "cpu", "--epochs", "2", "--batch-size", "64"),
            *("--log-with", "tensorboard", "-o", "run"),
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert without_rates(event_scalars(tmp_path / "run")) == expected(tmp_path / "run")
    assert len(list((tmp_path / "run/tensorboard").glob("events*"))) == 1
