"""Forks of the command server stand for fresh processes: streams, arguments, folder, exit codes and signals."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import FORKED_PYTHON, forked_python

SCRIPT = """
import os, signal, subprocess, sys, time
if sys.argv[1] == "inner":
    print("inner", os.environ["WORD"], os.getcwd(), flush=True)
    sys.exit(3)
if sys.argv[1] == "outer":
    print(sys.argv[1:], __name__, flush=True)
    sys.exit(subprocess.run([sys.executable, __file__, "inner"]).returncode + 4)
if sys.argv[1] == "words":
    sys.exit("said at the end")
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
print("waiting", flush=True)
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    print("deaf", flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Start the script in a folder of its own."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    python, environment = forked_python({**os.environ, "WORD": "of the caller"})

    def run(*arguments):
        return subprocess.Popen(
            [python, script, *arguments],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return run


def test_processes_that_a_script_starts_get_its_environment_and_answer_their_codes(start, tmp_path):
    process = start("outer", "more words")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (7, "")
    assert out.splitlines() == ["['outer', 'more words'] __main__", f"inner of the caller {tmp_path}"]


def test_words_at_the_end_are_said_and_are_exit_1(start):
    process = start("words")
    assert process.communicate(timeout=120) == ("", "said at the end\n")
    assert process.returncode == 1


def test_a_process_ends_by_the_signal_that_ended_its_fork(start):
    process = start("killed")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("mode", "code"), [("plain", -signal.SIGTERM), ("deaf", 5)])
def test_signals_reach_the_fork(start, mode, code):
    process = start(mode)
    assert process.stdout.readline() == "waiting\n"
    if mode == "deaf":
        assert process.stdout.readline() == "deaf\n"
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == code


def test_a_fork_is_killed_with_its_process(start):
    process = start("plain")
    assert process.stdout.readline() == "waiting\n"
    process.kill()
    # The fork holds the other end: this returns when it is gone.
    assert process.stdout.read() == ""
    process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="missing: Linux, where commands are forked")
def test_anything_else_is_real_python():
    python, environment = forked_python(os.environ)
    code = "import sys; print(sys.executable, 'torch' in sys.modules)"
    found = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [sys.executable, "False"]
    assert str(FORKED_PYTHON) == python or os.environ.get("NM2TRT_TEST_FRESH")
