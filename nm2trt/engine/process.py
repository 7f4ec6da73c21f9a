"""Starts worker processes, reads their answers, and cleans their logs of this machine's paths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

from nm2trt.artifacts import EngineRecord, sha256_of, this_platform, write_atomic
from nm2trt.artifacts.host import installed_version
from nm2trt.engine.job import Backend, BuildProgress, EngineJob, RefitJob, WorkerAnswer
from nm2trt.engine.worker_log import explain
from nm2trt.errors import MachineError

_WORKER = "nm2trt.engine.worker"
PROGRESS = b"progress "
"""Begins the lines of a worker's output that tell its progress; the last line is the answer."""


def run_job(job: EngineJob, progress: Callable[[BuildProgress], None] | None = None) -> EngineRecord:
    """Build one engine in a process of its own.

    Args:
        job: What to build.
        progress: Called with each step that the builder reports.

    Returns:
        The record; a build that failed has `error` set and `file` None, and its log is kept.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="nm2trt-engine-") as temporary:
        path = Path(temporary) / "job.json"
        path.write_text(job.model_dump_json(), encoding="utf-8")
        answer = _answer([str(path)], progress)
    if answer.errno is not None:
        raise OSError(answer.errno, os.strerror(answer.errno), answer.filename or str(job.plan))
    scrub_log(job.log, job.folder)
    built = answer.error is None and job.plan.is_file()
    error = _explained(answer, job.log) or (None if built else "the builder wrote no plan")
    return EngineRecord(
        variant=job.variant,
        rebuild=job.rebuild,
        file=job.plan.name if built else None,
        builder=job.backend,
        builder_version=answer.version or installed_version(job.backend) or "",
        sm=answer.sm or job.sm or "",
        platform=this_platform(),
        batch=job.batch,
        onnx=job.onnx.name,
        flags=answer.flags,
        timing_cache=scrub(answer.timing_cache, job.folder),
        sha256=sha256_of(job.plan) if built else None,
        size_bytes=job.plan.stat().st_size if built else None,
        seconds=answer.seconds,
        log=job.log.name,
        note=scrub(answer.note, job.folder),
        error=None if error is None else scrub(error, job.folder),
        error_code="parser-refused" if error is not None and answer.parser_refused else "",
    )


def run_refit(job: RefitJob) -> WorkerAnswer:
    """Give an engine new weights in a process of its own; TensorRT only.

    Raises:
        OSError: The new plan cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="nm2trt-refit-") as temporary:
        path = Path(temporary) / "job.json"
        path.write_text(job.model_dump_json(), encoding="utf-8")
        answer = _answer(["--refit", str(path)])
    if answer.errno is not None:
        raise OSError(answer.errno, os.strerror(answer.errno), answer.filename or str(job.output))
    scrub_log(job.log, job.output.parent)
    if answer.error is not None:
        answer = answer.model_copy(update={"error": scrub(_explained(answer, job.log) or "", job.output.parent)})
    if answer.error is None and not job.output.is_file():
        answer = answer.model_copy(update={"error": "TensorRT wrote no plan"})
    return answer


def run_probe(backend: Backend) -> WorkerAnswer:
    """Ask an installed backend for its version and targets.

    Raises:
        MachineError: It is installed but cannot be loaded.
    """
    answer = _answer(["--probe", backend])
    if answer.error is not None:
        raise MachineError(f"is installed but does not load: {answer.error}", where=backend)
    return answer


def scrub(text: str, folder: Path) -> str:
    """Replace this machine's folders by what they are, so that a build can be handed on."""
    known = {
        str(folder): "<build>",
        str(folder.resolve()): "<build>",
        sysconfig.get_path("purelib"): "<site-packages>",
        sysconfig.get_path("platlib"): "<site-packages>",
        sys.prefix: "<python>",
        sys.base_prefix: "<python>",
        tempfile.gettempdir(): "<tmp>",
        str(Path.cwd()): "<cwd>",
        str(Path.home()): "<home>",
    }
    # The longest first: a site-packages folder lies inside the prefix.
    for path in sorted(known, key=len, reverse=True):
        # "/" and "/usr" would eat names that are no paths; nothing private hides there.
        if path.count("/") > 1 or path in (tempfile.gettempdir(), str(Path.home())):
            text = text.replace(path + "/", known[path] + "/").replace(path, known[path])
    return text


def scrub_log(log: Path, folder: Path) -> None:
    """Scrub a log file in place; makes an empty one where the worker never got that far."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    write_atomic(log, scrub(text, folder))


def _answer(arguments: list[str], progress: Callable[[BuildProgress], None] | None = None) -> WorkerAnswer:
    # -P keeps a tensorrt.py that lies in the user's folder from being imported; 3.10 does not know it.
    isolated = ["-P"] if sys.version_info >= (3, 11) else []
    process = subprocess.Popen(
        [sys.executable, *isolated, "-m", _WORKER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "POLYGRAPHY_AUTOINSTALL_DEPS": "0"},
    )
    last = b""
    try:
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
        assert stdin is not None
        assert stdout is not None
        assert stderr is not None
        # The open stdin is the worker's sign that we live; communicate() would close it.
        for line in stdout:
            if line.startswith(PROGRESS):
                if progress is not None:
                    progress(BuildProgress.model_validate_json(line[len(PROGRESS) :]))
            else:
                last = line
        said = stderr.read().decode(errors="replace").strip()
        code = process.wait()
        stdin.close()
        stdout.close()
        stderr.close()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if not last:
        return WorkerAnswer(error=_describe_exit(code, said), died=True)
    answer = WorkerAnswer.model_validate_json(last)
    if code == 0:
        return answer
    # The work was done and told; what broke is the end of the process, where CUDA and TensorRT are torn down.
    note = f"after it had answered, {_describe_exit(code, said)}"
    return answer.model_copy(update={"note": "; ".join(filter(None, [answer.note, note]))})


def _explained(answer: WorkerAnswer, log: Path) -> str | None:
    """The error of an answer; where the process died, with what its log says of it."""
    if answer.error is None or not answer.died:
        return answer.error
    reason = explain(log.read_text(encoding="utf-8", errors="replace"), "")
    return f"{answer.error}; its log says: {reason}" if reason else answer.error


def _describe_exit(code: int, said: str) -> str:
    last = f": {said.splitlines()[-1]}" if said else ""
    if code < 0:
        hint = " (the system kills so when memory runs out)" if -code == signal.SIGKILL else ""
        return f"the build process was killed by {signal.Signals(-code).name}{hint}{last}"
    return f"the build process ended with exit code {code}{last}"
