"""What becomes of a worker that dies, of its parent's death, of a full disk, and of the words in its log."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nm2trt.engine import process, worker_progress
from nm2trt.engine.job import BuildProgress, EngineJob
from nm2trt.engine.worker import explain
from nm2trt.errors import MachineError


def job(folder):
    return EngineJob(
        backend="tensorrt-rtx", onnx=folder / "model.onnx", folder=folder, variant="sparse", sm="80", profile={}
    )


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Replace the worker by a module of one test's own."""
    folder = tmp_path / "modules"
    folder.mkdir()

    def replace(code):
        (folder / "fake_worker.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.setattr(process, "_WORKER", "fake_worker")

    return replace


def test_a_killed_worker_is_a_failed_build(worker, tmp_path):
    worker("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    record = process.run_job(job(tmp_path))
    assert record.file is None
    assert "killed by SIGKILL" in record.error
    assert (tmp_path / "sparse.log").read_text() == ""


def test_a_worker_that_fails_to_start_says_its_last_line(worker, tmp_path):
    worker("raise RuntimeError('no libcudart')")
    record = process.run_job(job(tmp_path))
    assert "exit code 1" in record.error
    assert "no libcudart" in record.error
    with pytest.raises(MachineError, match="no libcudart"):
        process.run_probe("tensorrt-rtx")


def test_an_answer_without_a_plan_is_no_success(worker, tmp_path):
    worker("print('{}')")
    record = process.run_job(job(tmp_path))
    assert (record.file, record.error) == (None, "the builder wrote no plan")


def test_progress_reaches_the_caller_before_the_answer(worker, tmp_path):
    step = '{\\"phase\\": \\"Tactics\\", \\"done\\": 1, \\"of\\": 4}'
    worker(f'print("progress {step}"); print("progress {step}"); print(\'{{"error": "enough"}}\')')
    steps = []
    assert process.run_job(job(tmp_path), steps.append).error == "enough"
    assert [(step.phase, step.done, step.of) for step in steps] == [("Tactics", 1, 4)] * 2
    assert process.run_job(job(tmp_path)).error == "enough"


def test_the_monitor_writes_few_lines_and_never_more_steps_than_there_are(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(worker_progress.time, "monotonic", lambda: now[0])
    reader, writer = os.pipe()
    reporter = worker_progress.Reporter(writer)
    now[0] = 1.0
    reporter.start("Building", None, 2)
    reporter.start("Tactics", "Building", 1000)
    for step in range(1001):
        now[0] += 0.001
        reporter.step("Tactics", step)
    reporter.finish("Tactics")
    reporter.step("Tactics", 3)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        lines = file.read().splitlines()
    steps = [BuildProgress.model_validate_json(line.removeprefix(process.PROGRESS)) for line in lines]
    assert 9 <= len(steps) <= 12
    assert {step.phase for step in steps} == {"Building", "Building: Tactics"}
    assert all(0 <= step.done <= step.of for step in steps)


def test_a_full_disk_in_the_worker_is_a_full_disk_here(worker, tmp_path):
    worker(f'print(\'{{"error": "no space", "errno": {errno.ENOSPC}}}\')')
    with pytest.raises(OSError, match="No space left") as caught:
        process.run_job(job(tmp_path))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename.endswith("sparse.plan")


def test_the_worker_ends_with_its_parent():
    code = "from nm2trt.engine.worker import _die_with_parent; import threading, time\n"
    code += "threading.Thread(target=_die_with_parent, daemon=True).start(); print('up', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"up\n"
    assert child.poll() is None
    child.stdin.close()
    assert child.wait(timeout=30) == 1
    child.stdout.close()


def test_an_interrupt_kills_the_worker(worker, tmp_path, monkeypatch):
    mark = tmp_path / "pid"
    worker(f"import os, time, pathlib; pathlib.Path({str(mark)!r}).write_text(str(os.getpid())); time.sleep(60)")

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    started = []
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1])
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        with pytest.raises(KeyboardInterrupt):
            process.run_job(job(tmp_path))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert started[0].returncode == -signal.SIGKILL


def test_paths_of_this_machine_are_replaced(tmp_path):
    text = (
        f"a {tmp_path}/model.onnx b {sys.prefix}/lib/x c {Path.home()}/secret d {tempfile.gettempdir()}/t e /l/0/Conv"
    )
    scrubbed = process.scrub(text, tmp_path)
    for private in (str(tmp_path), sys.prefix, tempfile.gettempdir()):
        assert private + "/" not in scrubbed
    assert "<build>/model.onnx" in scrubbed
    assert "/l/0/Conv" in scrubbed, "node names look like paths and stay"


LOG = """\
[V] Loaded Module: tensorrt_rtx
[E] ModelImporter.cpp:140: While parsing node number 0 [Bogus -> "y"]:
[!] Module: 'tensorrt' is required but could not be imported.
[E] [checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version)
"""


def test_parser_errors_come_first_then_error_lines_then_the_exception():
    line = '[E] In node 4 with name: /m/Foo and operator: Foo (check): UNSUPPORTED_NODE: no plugin "Foo"\n'
    assert explain(LOG + line + line, "x") == (
        'the ONNX parser refused node 4 /m/Foo (Foo): UNSUPPORTED_NODE: no plugin "Foo"'
    )
    assert explain(LOG + "[E] IBuilder: out of tactics\n[!] Invalid Engine\n", "x") == (
        "IBuilder: out of tactics; Invalid Engine"
    )
    assert explain(LOG, "PolygraphyException: boom") == "PolygraphyException: boom"
    assert explain("", "boom") == "boom"


def test_no_worker_is_left(worker, tmp_path, monkeypatch):
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self.pid)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    worker("import sys; sys.exit(3)")
    process.run_job(job(tmp_path))
    assert started, "no worker was started"
    for pid in started:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
