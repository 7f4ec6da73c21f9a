"""verify: every layer of a checkpoint or graph against N:M patterns and TensorRT's rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nm2trt.verify.check import check_layers, left_out_notes, parse_pattern, reduction_size
from nm2trt.verify.files import verify_path
from nm2trt.verify.histogram import group_histograms
from nm2trt.verify.naming import as_named, matches, names_of
from nm2trt.verify.verdicts import BAD_VERDICTS, ELIGIBLE, UNREAD_VERDICTS, CheckResult, LayerVerdict, Totals, Violation

if TYPE_CHECKING:
    from nm2trt.verify.verify_schema import VerifyDocument, VerifyManyDocument, json_of

__all__ = [
    "BAD_VERDICTS",
    "ELIGIBLE",
    "UNREAD_VERDICTS",
    "CheckResult",
    "LayerVerdict",
    "Totals",
    "VerifyDocument",
    "VerifyManyDocument",
    "Violation",
    "as_named",
    "check_layers",
    "group_histograms",
    "json_of",
    "left_out_notes",
    "matches",
    "names_of",
    "parse_pattern",
    "reduction_size",
    "verify_path",
]


def __getattr__(name: str) -> Any:
    # Only those who want JSON pay for pydantic.
    if name in ("VerifyDocument", "VerifyManyDocument", "json_of"):
        from nm2trt.verify import verify_schema as document

        return getattr(document, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
