"""Opens ONNX Runtime sessions, the only place that does, so that no graph ends the process.

Two optimizations of ONNX Runtime 1.24 to 1.31 crash while a session is made, and a crash is no exception: the process
is gone. The layout pass of the x86 CPU (NchwcTransformer) reads the operator of a node that an earlier fusion left
without one, wherever a Transpose reaches a MatMul through a Cast, and casts are put in for every float16 product
(github.com/microsoft/onnxruntime/issues/28392). The extended fusions crash on some exported cross-attention. Both act
on graphs that transpose and multiply matrices, so these are opened with the basic optimizations, or tried first.
"""

from __future__ import annotations

import mmap
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.errors import InputError
from nm2trt.library_errors import one_line
from nm2trt.threads import settle_session

Level = Literal["all", "extended", "basic", "none"]

ATTRIBUTES: dict[Level, str] = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "none": "ORT_DISABLE_ALL",
}
"""Names in `onnxruntime.GraphOptimizationLevel`."""
_RISKY_TOGETHER = (b"Transpose", b"MatMul")
_CPU = "CPUExecutionProvider"
_EXCEPTIONS_ONLY = 4
"""ONNX Runtime's log severity at which it logs nothing of what it also raises."""
_LONGEST_REASON = 400
"""Of a model that is no model the operator comes after a whole sentence."""
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_FAILED_NODE = re.compile(r"while running (\S+) node\. Name:'([^']*)'\s*Status Message:\s*(.*)", re.DOTALL)
_LOCATION = re.compile(r"^\S+:\d+ .*?\) ")
_LONGEST_TRIAL_S = 300
_TRIAL = f"""
import sys
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, sys.argv[2])
try:
    onnxruntime.InferenceSession(sys.argv[1], options, providers=[{_CPU!r}])
except Exception:
    pass
"""


class SessionError(InputError):
    """ONNX Runtime refuses a model or a batch; `reason` is what it says of it, in one line."""

    def __init__(self, what: str, reason: str, *, where: object) -> None:
        super().__init__(f"{what}: {reason}", where=where)
        self.reason = reason


def open_session(
    content: str | bytes,
    *,
    where: object = "",
    level: Level | None = None,
    threads: int | None = None,
    providers: Sequence[Any] = (_CPU,),
    arena: bool = True,
    entries: Mapping[str, str] | None = None,
    profile_prefix: str = "",
    log_severity: int = _EXCEPTIONS_ONLY,
) -> Any:
    """Make a session whose idle threads sleep.

    Args:
        content: A file's path, or a serialized model.
        where: For error lines.
        level: Of the optimizations; None: all of them, and the basic ones where others may crash.
        threads: That compute; None: as `nm2trt.threads` chooses.
        providers: As for `onnxruntime.InferenceSession`.
        arena: Keep freed memory of the CPU for the next run.
        entries: More of ONNX Runtime's session configuration, key -> value.
        profile_prefix: Where ONNX Runtime's profiler writes its file; empty: it is off.
        log_severity: 0 to 4, from all that ONNX Runtime has to say to nothing.

    Returns:
        The `onnxruntime.InferenceSession`.

    Raises:
        SessionError: ONNX Runtime refuses the model.
    """
    import onnxruntime

    if level is None:
        level = "basic" if may_crash(content) else "all"
    options = onnxruntime.SessionOptions()
    settle_session(options, threads)
    options.log_severity_level = log_severity
    options.enable_cpu_mem_arena = arena
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, ATTRIBUTES[level])
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    if profile_prefix:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    try:
        return onnxruntime.InferenceSession(content, options, providers=list(providers))
    except Exception as error:
        # onnxruntime's exception classes have no public base.
        raise SessionError("ONNX Runtime refuses the model", runtime_reason(error), where=where) from error


def run_session(session: Any, feeds: Mapping[str, NDArray[Any]], *, where: object = "") -> dict[str, Any]:
    """Run one batch.

    Args:
        session: Of `open_session`.
        feeds: Input name -> array.
        where: For error lines.

    Returns:
        Output name -> array (a list or a dict where the graph gives a sequence or a map), in the graph's order.

    Raises:
        SessionError: ONNX Runtime refuses the batch.
    """
    try:
        found = session.run(None, dict(feeds))
    except Exception as error:
        raise SessionError("ONNX Runtime cannot run the batch", runtime_reason(error), where=where) from error
    return dict(zip((port.name for port in session.get_outputs()), found, strict=True))


def runtime_reason(error: BaseException) -> str:
    """What ONNX Runtime says in one line: without its own file names, with the node where one failed."""
    text = " ".join(str(error).split())
    failed = _FAILED_NODE.search(text)
    if failed:
        return f"node {failed[2]} ({failed[1]}): {one_line(_LOCATION.sub('', failed[3]))}"
    return one_line(_PREFIX.sub("", text) or error, longest=_LONGEST_REASON)


def find_safe_level(content: bytes) -> Level:
    """The highest optimization level at which a session on the CPU can be made, for networks that are timed.

    Each level is tried in a process of its own where the graph is one that may crash; that takes half a second.
    """
    if not may_crash(content):
        return "all"
    with tempfile.TemporaryDirectory(prefix="nm2trt-session-") as folder:
        file = Path(folder) / ONNX_FILE
        file.write_bytes(content)
        tried: tuple[Level, ...] = ("all", "extended", "basic")
        return next((level for level in tried if not _crashes(file, level)), "none")


def may_crash(content: str | bytes) -> bool:
    """Whether the graph names the operators that the crashing optimizations rewrite; names of nodes count, too."""
    if isinstance(content, bytes):
        return all(word in content for word in _RISKY_TOGETHER)
    try:
        with Path(content).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return all(view.find(word) >= 0 for word in _RISKY_TOGETHER)
    except (OSError, ValueError):
        # Missing or empty: for ONNX Runtime to say.
        return False


def _crashes(file: Path, level: Level) -> bool:
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _TRIAL, str(file), ATTRIBUTES[level]],
            capture_output=True,
            timeout=_LONGEST_TRIAL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    # A signal is a negative number, or a large one on Windows; exceptions are caught inside.
    return ended.returncode != 0
