"""The judge: every layer of a checkpoint or graph against N:M patterns and TensorRT's rules."""

from nm2trt.verify.document import ELIGIBLE, LayerVerdict, Totals, VerifyDocument, VerifyManyDocument, Violation
from nm2trt.verify.files import verify_path
from nm2trt.verify.judge import judge, matches, parse_pattern, reduction_size

__all__ = [
    "ELIGIBLE",
    "LayerVerdict",
    "Totals",
    "VerifyDocument",
    "VerifyManyDocument",
    "Violation",
    "judge",
    "matches",
    "parse_pattern",
    "reduction_size",
    "verify_path",
]
