"""A run that is killed and resumed ends in the very same bytes."""

import json
import os
import random
import signal
import subprocess
import time

import pytest
from helpers import assert_one_error_line, forked_python, nm2trt, nm2trt_inline

ARGUMENTS = ("--model", "mlp", "--epochs", 12, "--device", "cpu", "--accumulation", 2)


def hashes(folder):
    files = json.loads((folder / "run.json").read_text())["files"]
    return {name: files[name]["sha256"] for name in ("checkpoint.safetensors", "sad.csv")}


def timeless(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = nm2trt("train", *ARGUMENTS, "-o", folder)
    assert result.returncode == 0, result.stderr
    return folder


def start(folder, *arguments):
    python, environment = forked_python(os.environ)
    return subprocess.Popen(
        [python, "-m", "nm2trt", "train", *map(str, arguments), "-o", str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_state(folder, process):
    deadline = time.monotonic() + 120
    while not (folder / "state" / "last.pt").is_file():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_a_random_moment(whole, tmp_path, seed):
    """`benchmarks/kill_resume.py` does the same twenty times over."""
    folder = tmp_path / "run"
    process = start(folder, *ARGUMENTS)
    wait_for_state(folder, process)
    time.sleep(random.Random(seed).uniform(0, 0.4))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    result = nm2trt("train", "--resume", "-o", folder)
    assert result.returncode == 0, result.stderr
    assert hashes(folder) == hashes(whole)
    assert timeless(folder) == timeless(whole)
    assert sorted(path.name for path in folder.rglob("*")) == sorted(path.name for path in whole.rglob("*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_in_the_middle_of_an_epoch(whole, tmp_path, number):
    folder = tmp_path / "run"
    process = start(folder, *ARGUMENTS)
    wait_for_state(folder, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("the run ended before the signal came")
    assert process.returncode == 130
    assert "stopped at step" in errors
    assert "go on with --resume" in errors
    assert "Traceback" not in errors
    assert nm2trt("train", "--resume", "-o", folder).returncode == 0
    assert hashes(folder) == hashes(whole)
    assert timeless(folder) == timeless(whole)


def test_a_finished_run_is_left_alone(whole):
    before = hashes(whole)
    result = nm2trt_inline("train", "--resume", "-o", whole, "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["files"]["checkpoint.safetensors"]["sha256"] == before["checkpoint.safetensors"]


def unfinished(whole, folder):
    folder.mkdir()
    (folder / "state").mkdir()
    (folder / "config.toml").write_bytes((whole / "config.toml").read_bytes())
    (folder / "state" / "last.pt").write_bytes((whole / "state" / "last.pt").read_bytes())
    return folder


def test_what_cannot_be_resumed_is_one_line_and_costs_nothing(whole, tmp_path):
    assert_one_error_line(nm2trt_inline("train", "--resume", "-o", tmp_path / "none"), 3, "no run to resume")
    run = unfinished(whole, tmp_path / "run")
    result = nm2trt_inline("train", "--resume", "--model", "resnet8", "--pattern", "1:4", "-o", run)
    assert_one_error_line(result, 2, "model was 'mlp', not 'resnet8'", "pattern was '2:4', not '1:4'")
    assert_one_error_line(nm2trt_inline("train", "--resume", "--force", "-o", run), 2, "--force")
    assert_one_error_line(nm2trt_inline("train", *ARGUMENTS, "-o", run), 2, "exists")
    state = run / "state" / "last.pt"
    good = state.read_bytes()
    for bad in (b"", good[: len(good) // 2], b"garbage", good[:100] + b"\xff" * 50 + good[150:]):
        state.write_bytes(bad)
        result = nm2trt_inline("train", "--resume", "-o", run)
        assert_one_error_line(result, 3, "last.pt")
        assert state.read_bytes() == bad


def test_a_state_that_would_run_code_is_refused(whole, tmp_path):
    import torch

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'pwned'}",))

    run = unfinished(whole, tmp_path / "run")
    torch.save({"schema": "nm2trt.state/1", "model": Evil()}, run / "state" / "last.pt")
    assert_one_error_line(nm2trt_inline("train", "--resume", "-o", run), 3, "last.pt")
    assert not (tmp_path / "pwned").exists()
