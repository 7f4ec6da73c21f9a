"""Whether a network takes certain inputs: tried in a process of its own, since an integer division by zero ends it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CANNOT_TELL = 3
_LONGEST_S = 300
# A session without nm2trt.ort, which opens all others: this text runs by itself, started once for each try.
OPEN_SESSION = f"""
import sys
import numpy as np
try:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
except Exception:
    sys.exit({_CANNOT_TELL})
"""
"""Beginning of a script whose first argument is a network."""
_RUN = f"""{OPEN_SESSION}
with np.load(sys.argv[2]) as values:
    names = [port.name for port in session.get_inputs()]
    session.run(None, {{name: values[f"arr_{{at}}"] for at, name in enumerate(names)}})
"""


def try_run(onnx: Path, feeds: Mapping[str, NDArray[Any]]) -> bool | None:
    """Run a network once in ONNX Runtime on the CPU.

    Args:
        onnx: The network.
        feeds: Values of its inputs, in their order; names need not fit into a file's.

    Returns:
        Whether it ran; None where that cannot be told: no ONNX Runtime here, operators without a CPU kernel, no end
        within five minutes.
    """
    with tempfile.TemporaryDirectory(prefix="nm2trt-trial-") as folder:
        file = Path(folder) / "values.npz"
        np.savez(file, *feeds.values())
        try:
            ended = subprocess.run(
                [sys.executable, "-c", _RUN, str(onnx.resolve()), str(file)],
                capture_output=True,
                timeout=_LONGEST_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None
    return None if ended.returncode == _CANNOT_TELL else ended.returncode == 0
