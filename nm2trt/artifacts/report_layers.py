"""The parts of report.json that look below the end-to-end time: layers, and behavior under load."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from nm2trt.artifacts.ratio import RatioRecord

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class LayerTimeRecord(BaseModel):
    """One layer, or one group of operators that an engine fused, in both variants."""

    model_config = _FROZEN

    name: str
    """The weight's or operator's name in the network where it is known, else the engine's own."""
    type: str
    """Operator or layer type, as the backend names it."""
    onnx_nodes: tuple[str, ...] = ()
    shape: str = ""
    """The weight's shape and the output's, as read."""
    dense_ms: float | None
    """Median of a call in the dense (baseline) variant; None where that variant has no such layer."""
    sparse_ms: float | None
    ratio: RatioRecord | None = None
    """Dense over sparse; with a bootstrap interval where single calls were timed, else a point."""
    share: float
    """Of all layers' time in the sparse variant, 0 to 1."""
    dense_kernel: str | None = None
    sparse_kernel: str | None = None
    weighted: bool | None = False
    """Whether it multiplies by constant weights: a convolution or matrix product; None where nothing shows it."""
    eligible: bool | None = None
    chosen: bool | None = None
    """Whether a sparse kernel ran, checked by kernel names or log lines; None where neither was seen."""
    why_not: str = ""
    """Why TensorRT could not consider a sparse kernel; empty where it could or nothing is known."""
    why_not_code: str = ""
    """The code of that reason (nm2trt/reasons.py); empty where only words are known."""
    flops: int | None = None
    """Floating-point (or integer) operations of a call; a multiply-add counts two; zeros count like any value."""
    bytes: int | None = None
    """Least traffic of a call: input, output and weights once, dense."""
    bytes_sparse: int | None = None
    """The same with weights in the compressed 2:4 form."""
    reasons: tuple[str, ...] = ()
    """Why the sparse variant is not faster here."""
    advice: tuple[str, ...] = ()
    """What to try; as many as `reasons`."""


class LayersRecord(BaseModel):
    """All layers at one batch size, from a run apart from the end-to-end timing."""

    model_config = _FROZEN

    batch: int
    source: str
    """Who took the times, and how."""
    calls: int
    layers: tuple[LayerTimeRecord, ...]
    """In the order they ran; layers of one variant alone included."""
    dense_ms: float
    """Sum over the layers of the dense variant. Exceeds the end-to-end time: profiling costs."""
    sparse_ms: float
    weighted: int
    """Layers of the sparse variant that multiply by constant weights; of the dense variant where it is the only one."""
    weights_unknown: int = 0
    """Layers of the same variant of which nothing shows whether they have weights; in none of the counts."""
    matched: int = 0
    """Of these, layers that were found in both variants."""
    eligible: int | None
    chosen: int | None
    """Layers in which a sparse kernel ran; None where this was not observed."""
    with_kernel: RatioRecord | None = None
    """Median dense/sparse of the layers with a sparse kernel, bootstrap interval over layers."""
    without_kernel: RatioRecord | None = None
    """The same of the weighted layers without one: what changed for another reason than sparsity."""
    net: RatioRecord | None = None
    """Ratio of the sums with `without_kernel` taken out: what is left for the sparse kernels."""
    sentence: str


class RooflineRecord(BaseModel):
    """Ceilings of the machine that ran the layers."""

    model_config = _FROZEN

    source: str
    """Measured here and how, or the data sheet."""
    dense_flops_per_s: float
    sparse_flops_per_s: float | None
    """None where the machine has no sparse arithmetic."""
    bytes_per_s: float


class LoadPointRecord(BaseModel):
    """One variant at one rate of arrivals. Latency counts from the moment a request was due, waiting included."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    variant: str = Field(alias="arm")
    rate_per_s: float
    """Requests due a second (Poisson)."""
    requests: int
    achieved_per_s: float
    median_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    waiting_share: float
    """Share of the latency that was waiting for a free stream, 0 to 1."""
    lateness_p99_ms: float
    """How late this program itself began requests that found a free stream; it is part of the latencies."""
    saturated: bool
    """The queue kept growing: no latency can be given for this rate."""


class LoadRecord(BaseModel):
    """Throughput and latency of a server with several streams."""

    model_config = _FROZEN

    batch: int
    """Samples per request."""
    streams: int
    duration_s: float
    seed: int
    capacity_per_s: dict[str, float]
    """Variant -> requests a second when every stream always has work (closed loop)."""
    points: tuple[LoadPointRecord, ...]
    sentence: str
