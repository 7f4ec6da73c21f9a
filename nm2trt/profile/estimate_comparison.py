"""An estimate beside what was measured: how far it was off, and whether its ranges held."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nm2trt.artifacts import BatchRecord, Document, ReportDocument
from nm2trt.artifacts.report_layers import LayersRecord, LayerTimeRecord
from nm2trt.errors import InputError
from nm2trt.estimate.estimate_schema import EstimateDocument, LayerRecord, RangeRecord
from nm2trt.estimate.gpus import gpu_of_device

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_LARGEST_FILE_BYTES = 64 << 20
_HINT = "write it with nm2trt estimate ... --json > estimate.json"

Finding = Literal["inside", "above", "below"]
"""Where the measured value lies: in the printed range, above it, below it."""
Mismatch = Literal["gpu", "precision", "backend", "pattern"]
"""What the two do not share, so that the difference is not the estimate's error alone."""


class Pair(BaseModel):
    """One estimated value with its range, and the measured one."""

    model_config = _FROZEN

    what: Literal["dense_ms", "sparse_ms", "ratio", "dense_us", "sparse_us"]
    estimated: RangeRecord
    measured: float
    finding: Finding

    @property
    def off(self) -> float:
        """Estimated over measured, less 1."""
        return self.estimated.value / self.measured - 1


class LayerPair(BaseModel):
    """One layer that both know, with what it computes, so that the pair can be fitted on elsewhere."""

    model_config = _FROZEN

    name: str
    kind: str
    precision: str
    m: int
    n: int
    k: int
    groups: int
    dense: Pair
    sparse: Pair | None
    """None where no sparse kernel was estimated or seen."""
    expected: bool
    """A sparse kernel was expected."""
    chosen: bool | None
    """A sparse kernel ran; None where that was not observed."""


class MismatchRecord(BaseModel):
    """One condition that differs."""

    model_config = _FROZEN

    what: Mismatch
    estimated: str
    measured: str


class EstimateComparisonDocument(Document):
    """Printed by `nm2trt compare ESTIMATE REPORT --json`."""

    SCHEMA: ClassVar[str] = "nm2trt.estimate-comparison/1"

    estimate: str
    report: str
    gpu: str
    device: str
    precision: str
    batch: int
    mismatches: tuple[MismatchRecord, ...]
    totals: tuple[Pair, ...]
    layers: tuple[LayerPair, ...]
    unmatched: tuple[str, ...]
    """Layers with weights of the estimate that the report does not name."""
    constants: dict[str, str]
    """Where the estimate's constants come from."""


def is_estimate(path: Path) -> bool:
    """Whether a path is a file that `nm2trt estimate --json` wrote; unreadable ones are not."""
    try:
        return (
            path.is_file() and path.stat().st_size <= _LARGEST_FILE_BYTES and _schema(path) == EstimateDocument.SCHEMA
        )
    except OSError:
        return False


def _schema(path: Path) -> Any:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return raw.get("schema") if isinstance(raw, dict) else None


def read_estimate(path: Path) -> EstimateDocument:
    """Read what `nm2trt estimate --json` printed.

    Raises:
        InputError: It lacks fields, or was written by another version.
    """
    try:
        return EstimateDocument.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"{field}: {first['msg']}", where=path, hint=_HINT) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"no readable estimate: {error}", where=path, hint=_HINT) from None


def compare_with_report(estimate_path: Path, report_path: Path) -> EstimateComparisonDocument:
    """Set an estimate beside a report.

    Args:
        estimate_path: What `nm2trt estimate --json` printed.
        report_path: Report folder of `nm2trt profile`, or its report.json.

    Raises:
        InputError: One of them cannot be read, or they share no batch size.
    """
    estimate = read_estimate(estimate_path)
    folder = report_path.parent if report_path.name == ReportDocument.FILE else report_path
    report = ReportDocument.read(folder, hint="name a folder that `nm2trt profile` wrote")
    batch = _batch_of(estimate, estimate_path)
    # Of several execution modes the one without launch gaps is what an estimate means.
    found = sorted((one for one in report.batches if one.batch == batch), key=lambda one: one.mode != "cuda-graph")
    layers = report.layers if report.layers is not None and report.layers.batch == batch else None
    if not found and layers is None:
        known = ", ".join(dict.fromkeys(str(one.batch) for one in report.batches)) or "none"
        raise InputError(
            f"the estimate is for batch {batch}, the report has {known}",
            where=f"{estimate_path} and {report_path}",
            hint="estimate anew with --batch N",
        )
    pairs, unmatched = _layer_pairs(estimate.layers, layers)
    return EstimateComparisonDocument(
        estimate=f"{estimate_path}: {estimate.source}",
        report=f"{report_path}: {report.sparse.name}, {report.created_utc}",
        gpu=estimate.gpu_name,
        device=report.runner.provider,
        precision=report.precision,
        batch=batch,
        mismatches=tuple(_mismatches(estimate, report)),
        totals=tuple(_totals(estimate, found[0])) if found else (),
        layers=tuple(pairs),
        unmatched=tuple(unmatched),
        constants=estimate.constants,
    )


def _batch_of(estimate: EstimateDocument, path: Path) -> int:
    sizes = {shape[0] for shape in estimate.inputs.values() if shape}
    if not sizes:
        raise InputError("names no input with a batch", where=path, hint=_HINT)
    # Inputs that hold one row for the whole batch are narrower.
    return max(sizes)


def _pair(what: Any, estimated: RangeRecord, measured: float) -> Pair:
    finding: Finding = "inside"
    if measured > estimated.high:
        finding = "above"
    elif measured < estimated.low:
        finding = "below"
    return Pair(what=what, estimated=estimated, measured=measured, finding=finding)


def _totals(estimate: EstimateDocument, batch: BatchRecord) -> list[Pair]:
    pairs = []
    for name, value in (("dense", estimate.dense_ms), ("sparse", estimate.sparse_ms)):
        variant = batch.variant(name)
        if variant is not None and variant.median_ms > 0:
            pairs.append(_pair(f"{name}_ms", value, variant.median_ms))
    if batch.baseline in ("dense", "control") and batch.ratio.value > 0:
        pairs.append(_pair("ratio", estimate.speedup, batch.ratio.value))
    return pairs


def _layer_pairs(layers: Sequence[LayerRecord], measured: LayersRecord | None) -> tuple[list[LayerPair], list[str]]:
    if measured is None:
        return [], []
    by_name: dict[str, LayerTimeRecord] = {}
    for row in measured.layers:
        for name in (*row.onnx_nodes, row.name):
            by_name[name] = row
    pairs, unmatched = [], []
    for layer in layers:
        names = (layer.name, layer.weight, layer.weight.removesuffix(".weight"), layer.torch_name)
        found = next((by_name[name] for name in names if name and name in by_name), None)
        if found is None or not found.dense_ms:
            if layer.weight:
                unmatched.append(layer.weight)
            continue
        sparse = None
        if layer.sparse_us is not None and found.chosen and found.sparse_ms:
            sparse = _pair("sparse_us", layer.sparse_us, 1e3 * found.sparse_ms)
        pairs.append(
            LayerPair(
                name=layer.weight or layer.name,
                kind=layer.kind,
                precision=layer.precision,
                m=layer.m,
                n=layer.n,
                k=layer.k,
                groups=layer.groups,
                dense=_pair("dense_us", layer.dense_us, 1e3 * found.dense_ms),
                sparse=sparse,
                expected=layer.sparse_kernel_expected,
                chosen=found.chosen if found.weighted else None,
            )
        )
    return pairs, unmatched


def _mismatches(estimate: EstimateDocument, report: ReportDocument) -> list[MismatchRecord]:
    found = []
    gpu = gpu_of_device(report.runner.provider)
    known = {estimate.gpu, estimate.gpu_name}
    if report.runner.provider not in known and (gpu is None or gpu.key not in known):
        found.append(MismatchRecord(what="gpu", estimated=estimate.gpu_name, measured=report.runner.provider))
    if report.runner.backend not in ("tensorrt", "tensorrt-rtx", "trtexec", "table"):
        found.append(MismatchRecord(what="backend", estimated="tensorrt", measured=report.runner.backend))
    if not _same_precision(estimate.precision, report.precision):
        found.append(MismatchRecord(what="precision", estimated=estimate.precision, measured=report.precision))
    counted = report.sparse.pattern
    if estimate.assumed and counted and estimate.assumed != counted:
        found.append(MismatchRecord(what="pattern", estimated=estimate.assumed, measured=counted))
    return found


def _same_precision(estimated: str, measured: str) -> bool:
    # "int8+fp16" runs the layers behind Q/DQ in INT8, the rest in FP16: what --precision fp16 estimates, too.
    return estimated in measured.split("+") or measured.split("+")[0] == estimated
