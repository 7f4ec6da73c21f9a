"""What `nm2trt prune` reports."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from nm2trt.artifacts import Document
from nm2trt.artifacts.calibration import Agreement, Sensitivity
from nm2trt.reasons import Reason

_FROZEN = ConfigDict(frozen=True, extra="forbid")

SUFFIX = ".prune.json"


class LayerError(BaseModel):
    """What pruning one tensor does to its layer's output on the calibration samples.

    Errors are sums of squared output differences over `dense_energy`, the sum of squared outputs of the dense layer
    without its bias; both on the inputs that the network pruned so far gives the layer.
    """

    model_config = _FROZEN

    error: float
    """Of the written weights; 0 where the layer computes what it did."""
    magnitude_error: float
    """Of the largest magnitudes of every group, unchanged."""
    dense_energy: float
    damping: float
    """Share of the mean diagonal that was added to the Hessian's; 0 for other methods than obs."""
    damped: bool
    """The Hessian is singular and only its damping made it usable."""
    dead_columns: int
    """Inputs that were 0 in every sample: nothing is known of their weights."""
    magnitude_rows: int
    """Outputs that magnitude alone serves better on these inputs, and which were pruned by it."""


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
    output: LayerError | None = None
    """Of a layer that was pruned with data; its `kept` is the share of the dense weights that the mask keeps."""


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
    scores: Literal["magnitude", "wanda", "obs"] = "magnitude"
    """What the order of the channels keeps more of: abs(w), abs(w) times the norm of its input, or w^2 / [H^-1]_cc."""
    kept_before: float | None = None
    """Share of that score which the pattern keeps without a permutation, mean of all pruned tensors; None in documents
    of older versions."""
    kept_after: float | None = None
    """The same with it."""
    outputs: Literal["agree", "differ", "unchecked"]
    """Of the permuted network, before pruning, against the original in ONNX Runtime on random inputs."""
    largest_difference: float | None
    """Largest |difference| of an output, relative to that output's largest magnitude."""
    outputs_note: str


class NormRecord(BaseModel):
    """What `--recalibrate-bn` did."""

    model_config = _FROZEN

    recalibrated: int
    """BatchNormalization nodes behind pruned layers that got new statistics."""
    shared: int
    """Behind pruned layers, too, but their statistics are computed, or read by several nodes: left as they were."""
    total: int
    """In the whole graph; 0 where they are folded into the layers before them."""


class DataRecord(BaseModel):
    """How the samples were used, and what they say about the whole network."""

    model_config = _FROZEN

    method: Literal["obs", "wanda", "magnitude"]
    damping: float
    """As asked for; see each layer for what was used."""
    data: str
    samples: int
    """That the layers were pruned with."""
    norms: NormRecord | None
    """None: not asked for."""
    agreement: Agreement | None
    """Pruned against dense network on held-out samples; `before` is the dense one."""
    relative_error: float | None
    """Norm of the output differences over the norm of the dense network's outputs, of the worst output."""
    max_drop: float | None
    """Points of the score; without labels per cent of `relative_error`."""
    kept_dense: tuple[str, ...]
    """Layers that `--max-drop` left dense, the most sensitive first."""
    sensitivity: tuple[Sensitivity, ...]
    """Each layer pruned alone, on calibration samples; empty where nothing asked for it. Read by `nm2trt recommend`."""
    seconds: float


class PruneDocument(Document):
    """Printed by `nm2trt prune --json`; with data, written as OUT.prune.json, too."""

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
    calibrated: DataRecord | None = None
    """None where no data were given."""

    def without_folders(self) -> PruneDocument:
        """The same for a file that others read: source and output by their names."""
        return self.model_copy(update={"source": Path(self.source).name, "output": Path(self.output).name})


def document_path(output: Path) -> Path:
    """Where the document of a network that was pruned with data lies."""
    return output.with_suffix(SUFFIX)
