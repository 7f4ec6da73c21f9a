"""What every comparison of networks shares: outputs held against each other, by rules that are written once.

Pure numpy: ONNX Runtime is imported by those who run networks.
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
)

__all__ = [
    "OutputComparison",
    "Reason",
    "as_arrays",
    "compare_output",
    "compare_outputs",
    "describe_comparison",
    "find_batch_axis",
    "first_failure",
    "merge_comparisons",
]
