"""`nm2trt estimate --json` and `nm2trt recommend --json`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from nm2trt.artifacts import Document
from nm2trt.estimate.geometry import LayerGeometry
from nm2trt.estimate.network import LayerEstimate, NetworkEstimate, Range
from nm2trt.estimate.recommend import Plan
from nm2trt.reasons import words_of

MEASURED: Literal["estimate, nothing was measured"] = "estimate, nothing was measured"

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class RangeRecord(BaseModel):
    """Value with its range."""

    model_config = _FROZEN

    value: float
    low: float
    high: float


class LayerRecord(BaseModel):
    """One layer; times in microseconds, as profiling layer by layer would show them."""

    model_config = _FROZEN

    name: str
    kind: str
    op_types: tuple[str, ...]
    weight: str
    torch_name: str
    precision: str
    m: int
    n: int
    k: int
    groups: int
    flops: int
    size_bytes: float
    dense_us: RangeRecord
    sparse_us: RangeRecord | None
    """With a sparse kernel, whether or not it would be chosen; None where TensorRT does not consider one."""
    bound: str
    """What limits the dense kernel: compute, on-chip traffic, memory or launch."""
    tensorrt: str
    expectation: str
    sparse_kernel_expected: bool
    gain: float
    why: str
    share: float
    """Of the dense engine's layers."""
    outside_data: tuple[str, ...]
    tensorrt_code: str = ""
    """Code of the reason in `tensorrt` (nm2trt/reasons.py); empty for an eligible layer."""
    why_code: str = ""
    """Code of the reason in `why`."""


class EstimateDocument(Document):
    """Printed by `nm2trt estimate --json`."""

    SCHEMA: ClassVar[str] = "nm2trt.estimate/1"

    source: str
    gpu: str
    gpu_name: str
    gpu_source: str
    precision: str
    assumed: str | None
    """Pattern that the weights were taken for; None where it was counted."""
    inputs: dict[str, tuple[int, ...]]
    measured: Literal["estimate, nothing was measured"] = MEASURED
    layers: list[LayerRecord]
    eligible: int
    sparse_kernels_expected: int
    dense_ms: RangeRecord
    """End to end, by CUDA graph, without transfers."""
    sparse_ms: RangeRecord
    speedup: RangeRecord
    """From sparse kernels alone."""
    clock_gain: float
    """Factor seen beside that on this board, in layers whose kernel did not change; clocks and power, not sparsity."""
    profile_us_per_layer: float
    """What a per-layer profile adds to each layer."""
    outside_data: tuple[str, ...]
    """What of this estimate no measurement stands behind; ranges are widened."""
    notes: tuple[str, ...]
    constants: dict[str, str]
    """Where the constants come from."""


class PlanStep(BaseModel):
    """The network with the first `sparse_layers` of the order made sparse."""

    model_config = _FROZEN

    sparse_layers: int
    kept_dense: int
    speedup: float
    added: str
    """Weight that this step made sparse."""
    saved_us: float
    sensitivity: float | None
    weights_share: float
    """Share of the weights in products that are pruned so far."""


class PlanDocument(Document):
    """Printed by `nm2trt recommend --json`."""

    SCHEMA: ClassVar[str] = "nm2trt.plan/1"

    source: str
    gpu: str
    precision: str
    inputs: dict[str, tuple[int, ...]]
    measured: Literal["estimate, nothing was measured"] = MEASURED
    target: float | None
    reached: bool
    speedup: RangeRecord
    best_speedup: float
    """With every layer sparse that gains."""
    steps: list[PlanStep]
    chosen_steps: int
    sparse: list[str]
    """Weights to make sparse."""
    dense: list[str]
    """Weights to keep dense, those that cannot be sparse left out."""
    train_arguments: list[str]
    prune_arguments: list[str]
    unnamed: list[str]
    """Weights whose module in torch the file does not name."""
    outside_data: tuple[str, ...]
    notes: tuple[str, ...]


def _record(value: Range) -> RangeRecord:
    return RangeRecord(value=round(value.value, 4), low=round(value.low, 4), high=round(value.high, 4))


def _layer(layer: LayerEstimate, total_us: float) -> LayerRecord:
    shape: LayerGeometry = layer.geometry
    return LayerRecord(
        name=shape.name,
        kind=shape.kind,
        op_types=shape.op_types,
        weight=shape.weight,
        torch_name=shape.torch_name,
        precision=layer.precision,
        m=shape.m,
        n=shape.n,
        k=shape.k,
        groups=shape.groups,
        flops=shape.flops,
        size_bytes=shape.size_bytes(layer.precision),
        dense_us=_record(layer.dense_us),
        sparse_us=_record(layer.sparse_us) if layer.sparse_us else None,
        bound=layer.dense.bound,
        tensorrt=layer.tensorrt,
        expectation=layer.expectation,
        sparse_kernel_expected=layer.chosen,
        gain=round(layer.gain, 4),
        why=words_of(layer.why),
        tensorrt_code=layer.against.code if layer.against else "",
        why_code=layer.why.code if layer.why else "",
        share=round(layer.dense.total_us / total_us, 5),
        outside_data=layer.outside,
    )


def estimate_document(source: str, estimate: NetworkEstimate, *, assumed: str | None) -> EstimateDocument:
    """The same findings with schema, version and time."""
    total_us = sum(layer.dense.total_us for layer in estimate.layers)
    return EstimateDocument(
        source=source,
        gpu=estimate.gpu.key,
        gpu_name=estimate.gpu.name,
        gpu_source=estimate.gpu.source,
        precision=estimate.precision,
        assumed=assumed,
        inputs=dict(estimate.inputs),
        layers=[_layer(layer, total_us) for layer in estimate.layers],
        eligible=sum(layer.sparse is not None for layer in estimate.layers),
        sparse_kernels_expected=estimate.sparse_layers,
        dense_ms=_record(estimate.dense_ms),
        sparse_ms=_record(estimate.sparse_ms),
        speedup=_record(estimate.speedup),
        clock_gain=estimate.clock_gain,
        profile_us_per_layer=estimate.profile_us,
        outside_data=estimate.outside,
        notes=estimate.notes,
        constants=estimate.constants.provenance,
    )


def plan_document(source: str, plan: Plan) -> PlanDocument:
    """The same findings with schema, version and time."""
    estimate = plan.estimate
    return PlanDocument(
        source=source,
        gpu=estimate.gpu.key or estimate.gpu.name,
        precision=estimate.precision,
        inputs=dict(estimate.inputs),
        target=plan.target,
        reached=plan.reached,
        speedup=_record(estimate.speedup),
        best_speedup=round(plan.best_speedup, 4),
        steps=[
            PlanStep(
                sparse_layers=index + 1,
                kept_dense=len(plan.steps) - index - 1,
                speedup=round(step.speedup, 4),
                added=step.layer.geometry.weight,
                saved_us=round(step.saved_us, 3),
                sensitivity=step.sensitivity,
                weights_share=round(step.weights_share, 4),
            )
            for index, step in enumerate(plan.steps)
        ],
        chosen_steps=plan.chosen_steps,
        sparse=[layer.geometry.weight for layer in plan.sparse],
        dense=[layer.geometry.weight for layer in plan.dense],
        train_arguments=list(plan.train_arguments),
        prune_arguments=list(plan.prune_arguments),
        unnamed=list(plan.unnamed),
        outside_data=estimate.outside,
        notes=plan.notes,
    )
