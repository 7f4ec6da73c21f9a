"""Compares two plans as bytes. A plan is never loaded for it: plans are executable code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_INTERNAL_NUMBER = re.compile(rb"__mye[0-9]+")
_MASKED = b"__mye#"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanComparison:
    """What two plans of one network have in common."""

    relation: Literal["identical", "renumbered", "different"]
    """`renumbered`: equal but for the numbers in the compiler's own names (__myeN).

    TensorRT-RTX 1.7 draws some of these numbers anew in every build, with or without a changed flag: eight builds of
    one network with one configuration gave two files.
    """
    sentence: str


def compare_plans(left: Path, right: Path) -> PlanComparison:
    """Compare the control and the sparse variant's plan files.

    Raises:
        OSError: A file cannot be read.
    """
    a, b = left.read_bytes(), right.read_bytes()
    if a == b:
        return PlanComparison(
            relation="identical", sentence="the plans with and without SPARSE_WEIGHTS are byte-identical"
        )
    if _INTERNAL_NUMBER.sub(_MASKED, a) == _INTERNAL_NUMBER.sub(_MASKED, b):
        return PlanComparison(
            relation="renumbered",
            sentence="the plans with and without SPARSE_WEIGHTS are identical but for the compiler's own numbering of "
            "tensors, which changes from build to build whatever the flag",
        )
    return PlanComparison(
        relation="different",
        sentence=f"the plans with and without SPARSE_WEIGHTS differ ({len(a)} and {len(b)} bytes), which does not tell "
        "which kernels run",
    )
