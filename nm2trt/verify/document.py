"""What the judge says: one verdict per layer, totals, and the reasons for a fail."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from nm2trt.artifacts import Document

_FROZEN = ConfigDict(frozen=True, extra="forbid")

Verdict = Literal["conforms", "violates", "wrong-axis", "dense", "indivisible", "not-prunable", "zero-point"]
BAD_VERDICTS: tuple[Verdict, ...] = ("violates", "wrong-axis", "zero-point")

ELIGIBLE = "eligible"


class Violation(BaseModel):
    """The first group that holds more than N non-zeros."""

    model_config = _FROZEN

    index: tuple[int, ...]
    """Index of the group's first weight; the group runs from there along the layer's axis."""
    values: tuple[float, ...]
    """The group's M values."""


class LayerVerdict(BaseModel):
    """One weight."""

    model_config = _FROZEN

    name: str
    node: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    axis: int | None
    """Reduction axis: the one that the hardware groups along."""
    channel_groups: int
    """Groups of a grouped convolution; 1 otherwise, and unknown (1) in checkpoints."""
    pattern: str
    verdict: Verdict
    groups: int
    """Groups of M weights along the axis; 0 where none were counted."""
    violations: int
    first_violation: Violation | None
    density: float | None
    """Share of weights that are not zero, 0 to 1; None where they were not read."""
    nonfinite: int
    """NaN and infinite weights."""
    tensorrt: str
    """`eligible`, or why TensorRT does not consider a sparse kernel. Eligible is not chosen, and not faster."""
    note: str
    """The verdict's reason in words; may be empty."""


class Totals(BaseModel):
    """Sums over the layers."""

    model_config = _FROZEN

    layers: int
    prunable: int
    verdicts: dict[str, int]
    eligible: int
    weights: int
    """In prunable layers, like the two below."""
    zeros: int
    weights_in_conforming: int
    groups: int
    violations: int
    nonfinite: int


class VerifyDocument(Document):
    """Printed by `nm2trt verify --json`; kept in build.json by `nm2trt export`."""

    SCHEMA: ClassVar[str] = "nm2trt.verify/1"

    source: str
    kind: Literal["checkpoint", "onnx"]
    pattern: str
    """The pattern that layers are judged by unless something names another for them."""
    method: str | None
    """Training method that the file names."""
    strict: bool
    verdict: Literal["pass", "fail"]
    problems: list[str]
    """Why the verdict is fail, one line each."""
    notes: list[str]
    layers: list[LayerVerdict]
    excluded: list[str]
    totals: Totals


class VerifyManyDocument(Document):
    """Printed by `nm2trt verify --json` for more than one path."""

    SCHEMA: ClassVar[str] = "nm2trt.verify-many/1"

    verdict: Literal["pass", "fail"]
    files: list[VerifyDocument]
