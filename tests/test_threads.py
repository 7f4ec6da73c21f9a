"""The choice of CPU threads: who decides, what idle threads do, and that nothing heavy is imported for it."""

import json
import os
import subprocess
import sys

import pytest
from helpers import nm2trt
from hypothesis import given
from hypothesis import strategies as st

from nm2trt import threads

ASKED = """
import sys
from nm2trt.threads import choose_threads, prepare_threads
prepare_threads({requested}, sleep={sleep})
assert not {{"torch", "onnxruntime", "numpy"}} & set(sys.modules), "something heavy was imported"
import torch
choice = choose_threads({gflop}, before={before})
print(choice.threads, choice.source, choice.waiting, torch.get_num_threads())
"""
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def ask(requested=None, sleep=True, gflop=None, before=None, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES} | environment
    code = ASKED.format(requested=requested, sleep=sleep, gflop=gflop, before=before)
    result = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    count, source, waiting, of_torch = result.stdout.split()
    return int(count), source, waiting, int(of_torch)


def test_the_option_wins_over_the_environment_and_reaches_torch():
    # What torch makes of more than there are cores is its own business.
    assert ask(1, OMP_NUM_THREADS="2") == (1, "option", "sleep", 1)
    assert ask(OMP_NUM_THREADS="1", gflop=50.0) == (1, "environment", "sleep", 1)
    assert ask(OMP_NUM_THREADS="2,4")[:2] == (2, "environment")


def test_small_work_gets_one_thread_and_a_resumed_run_what_it_had():
    assert ask(gflop=0.05)[:3] == (1, "work", "sleep")
    assert ask(gflop=1e6)[:2] == (threads.usable_cores(), "work")
    assert ask(gflop=0.05, before=2)[:2] == (2, "state")
    assert ask()[:2] == (threads.usable_cores(), "cores")


def test_what_the_user_set_is_left_and_told():
    assert ask(OMP_WAIT_POLICY="active")[2] == "spin"
    assert ask(GOMP_SPINCOUNT="1000")[2] == "spin"
    assert ask(sleep=False)[2] == "spin"


@given(st.floats(min_value=0, max_value=1e9))
def test_the_count_lies_between_one_and_the_cores(gflop):
    count = threads.choose_threads(gflop).threads
    assert count >= 1
    assert count <= max(threads.usable_cores(), int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.mark.parametrize("command", ["train", "demo", "export", "calibrate", "profile", "prune", "check-server"])
def test_every_command_that_runs_a_network_takes_threads_before_anything_heavy_is_imported(command):
    code = (
        "import sys\n"
        "from nm2trt.cli.main import cli\n"
        f"command = cli.get_command(None, {command!r})\n"
        "assert not {'torch', 'onnxruntime', 'onnx', 'numpy'} & set(sys.modules), sorted(sys.modules)\n"
        "option = next(p for p in command.params if p.name == 'threads')\n"
        "assert option.callback is not None\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_run_records_and_says_its_threads_and_goes_on_with_as_many(tmp_path):
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    common = ("train", "--model", "mlp", "--epochs", 2, "--device", "cpu")
    result = nm2trt(*common, "-o", tmp_path / "small", env=clean, fresh=True)
    assert "CPU: 1 thread (a batch is 0.0033 GFLOP)" in result.stdout
    recorded = json.loads((tmp_path / "small" / "run.json").read_text())["threads"]
    assert (recorded["threads"], recorded["source"], recorded["waiting"]) == (1, "work", "sleep")
    assert recorded["gflop"] == pytest.approx(2 * 64 * (64 * 128 + 128 * 128 + 128 * 10) / 1e9, rel=1e-6)
    result = nm2trt(*common, "--threads", 2, "-o", tmp_path / "asked", env=clean, fresh=True)
    assert "CPU: 2 threads (--threads; idle ones sleep)" in result.stdout
    assert nm2trt(*common, "--threads", 0, "-o", tmp_path / "none", env=clean, fresh=True).returncode == 2


def test_a_session_of_onnxruntime_gets_the_choice_and_does_not_spin(monkeypatch):
    import onnxruntime

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    options = onnxruntime.SessionOptions()
    threads.settle_session(options)
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
