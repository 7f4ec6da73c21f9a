"""What `nm2trt prune` reports."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from nm2trt.artifacts import Document
from nm2trt.reasons import Reason

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class PrunedLayer(BaseModel):
    """One use of one weight."""

    model_config = _FROZEN

    name: str
    node: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    axis: int | None
    pattern: str | None
    """None: left as it was."""
    reason: str
    """Why it was pruned or left as it was, in words."""
    why: Reason | None = None
    """Why it can never be pruned, as data; None where that is not so."""
    not_checked: bool = False
    """It may be a weight, but nothing is known of it."""
    magnitude: float | None
    """Sum of |w| before pruning; None where nothing was pruned."""
    kept: float | None
    """Share of that sum which the written file holds, 0 to 1."""
    kept_unpermuted: float | None
    """Share that the pattern keeps without a permutation; equal to `kept` where nothing was permuted."""
    kept_unstructured: float | None
    """Share of the largest N / M of all weights: the upper bound for any pattern of this density."""


class MagnitudeTotals(BaseModel):
    """Over all pruned tensors; a tensor that several operators share counts once."""

    model_config = _FROZEN

    tensors: int
    weights: int
    magnitude: float
    kept: float
    kept_unpermuted: float
    kept_unstructured: float


class ChannelGroup(BaseModel):
    """Channels that can only be permuted together, since producers and consumers share them."""

    model_config = _FROZEN

    channels: int
    weights: tuple[str, ...]
    """Weights to prune whose reduction axis these channels are."""
    permuted: bool
    reason: str
    """Why the channels keep their order; empty where they were permuted."""
    tensors: int
    """Constants that were permuted with them."""


class Permutation(BaseModel):
    """What the search for channel permutations did."""

    model_config = _FROZEN

    groups: list[ChannelGroup]
    outputs: Literal["agree", "differ", "unchecked"]
    """Of the permuted network, before pruning, against the original in ONNX Runtime on random inputs."""
    largest_difference: float | None
    """Largest |difference| of an output, relative to that output's largest magnitude."""
    outputs_note: str


class PruneDocument(Document):
    """Printed by `nm2trt prune --json`."""

    SCHEMA: ClassVar[str] = "nm2trt.prune/1"

    source: str
    output: str
    pattern: str
    verdict: Literal["pass", "fail"]
    """Whether every pruned layer conforms in the result of `nm2trt verify` on the written file."""
    problems: list[str]
    notes: list[str]
    layers: list[PrunedLayer]
    totals: MagnitudeTotals
    permutation: Permutation | None
