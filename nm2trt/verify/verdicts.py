"""What verify finds: one verdict per layer, totals, and the reasons for a fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nm2trt.reasons import Reason

Verdict = Literal[
    "conforms", "violates", "wrong-axis", "dense", "indivisible", "not-prunable", "not-checked", "zero-point"
]
BAD_VERDICTS: tuple[Verdict, ...] = ("violates", "wrong-axis", "zero-point")
UNREAD_VERDICTS: tuple[Verdict, ...] = ("not-prunable", "not-checked")
"""Known to be no weight to prune; and what may be one, of which nothing is known."""

ELIGIBLE = "eligible"

_STRICT: dict[str, Any] = {"extra": "forbid"}
"""How pydantic reads these back from a document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """The first group that holds more than N non-zeros."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    index: tuple[int, ...]
    """Index of the group's first weight; the group runs from there along the layer's axis."""
    values: tuple[float, ...]
    """The group's M values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerVerdict:
    """One weight."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

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
    hint: Literal["likely", "unlikely", "open", ""] = ""
    """Of an eligible layer: whether TensorRT is likely to choose a sparse kernel for such a shape. A guess from few
    records (nm2trt/verify/hints.py), never a finding; "open" where they do not say, empty where nothing is eligible."""
    note: str
    """The verdict's reason in words; may be empty."""
    reason: Reason | None = None
    """Why the weight was not read, or is left dense on purpose, as data; None otherwise."""
    tensorrt_reason: Reason | None = None
    """`tensorrt` as data; None for an eligible layer, and in documents from before this field."""
    reading: Reason | None = None
    """What the reader did to the stored values, such as applying a mask, as data; None where nothing."""
    packed: str = ""
    """Format in which the file holds the weight packed; empty for plain values."""

    @property
    def is_eligible(self) -> bool:
        """Whether TensorRT may consider a sparse kernel."""
        return self.tensorrt == ELIGIBLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over the layers."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

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
    not_checked: int = 0
    """Tensors of which nothing is known, though an operator may multiply by them."""
    weights_not_checked: int = 0
    """Values in those tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """All about one file. Plain, so that a verdict needs no pydantic; `json_of` writes it as a VerifyDocument."""

    source: str
    kind: Literal["checkpoint", "onnx"]
    pattern: str
    """The pattern that layers are checked by unless something names another for them."""
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
