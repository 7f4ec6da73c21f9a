"""Opens ONNX Runtime sessions so that no graph ends the process.

Two optimizations of ONNX Runtime 1.24 to 1.31 crash while a session is made, and a crash is no exception: the process
is gone. The layout pass of the x86 CPU (NchwcTransformer) reads the operator of a node that an earlier fusion left
without one, wherever a Transpose reaches a MatMul through a Cast, and casts are put in for every float16 product
(github.com/microsoft/onnxruntime/issues/28392). The extended fusions crash on some exported cross-attention. Both act
on graphs that transpose and multiply matrices, so these are opened with the basic optimizations, or tried first.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

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


def open_session(content: str | bytes, options: Any, *, providers: Sequence[Any] = (_CPU,)) -> Any:
    """Make a session that compares or calibrates: with the basic optimizations where others may crash.

    Args:
        content: A file's path, or a serialized model.
        options: An `onnxruntime.SessionOptions`; its optimization level is lowered where need be.
        providers: As for `onnxruntime.InferenceSession`.

    Raises:
        Exception: Whatever ONNX Runtime raises; its exception classes have no public base.
    """
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    if options.graph_optimization_level != levels.ORT_DISABLE_ALL and may_crash(content):
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(content, options, providers=list(providers))


def find_safe_level(content: bytes) -> Level:
    """The highest optimization level at which a session on the CPU can be made, for networks that are timed.

    Each level is tried in a process of its own where the graph is one that may crash; that takes half a second.
    """
    if not may_crash(content):
        return "all"
    with tempfile.TemporaryDirectory(prefix="nm2trt-session-") as folder:
        file = Path(folder) / "model.onnx"
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
