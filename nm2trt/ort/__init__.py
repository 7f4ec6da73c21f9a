"""What every comparison of networks shares: outputs held against each other, and sessions that do not crash.

Pure numpy: ONNX Runtime is imported where a session is made.
"""

from __future__ import annotations

from nm2trt.ort.batch_axis import find_batch_axis
from nm2trt.ort.compare_outputs import (
    OutputComparison,
    Reason,
    as_arrays,
    compare_output,
    compare_outputs,
    describe_comparison,
    first_failure,
    merge_comparisons,
    summarize_comparison,
)
from nm2trt.ort.open_session import SessionError, find_safe_level, open_session, run_session, runtime_reason

__all__ = [
    "OutputComparison",
    "Reason",
    "SessionError",
    "as_arrays",
    "compare_output",
    "compare_outputs",
    "describe_comparison",
    "find_batch_axis",
    "find_safe_level",
    "first_failure",
    "merge_comparisons",
    "open_session",
    "run_session",
    "runtime_reason",
    "summarize_comparison",
]
