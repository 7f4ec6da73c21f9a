"""Two reports side by side: what differs in their making, their ratios, their layers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from nm2trt.artifacts import BatchRecord, Document, ReportDocument
from nm2trt.artifacts.report_layers import LayersRecord
from nm2trt.errors import InputError

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_MOST_LAYERS = 12
_KERNELS = {True: "sparse", False: "dense", None: "not seen"}


class DifferenceRecord(BaseModel):
    """One thing that the two reports do not share."""

    model_config = _FROZEN

    what: str
    first: str
    second: str


class BatchComparison(BaseModel):
    """One batch size that both measured."""

    model_config = _FROZEN

    batch: int
    first: str
    """Ratio with its interval."""
    second: str
    first_ms: float
    """Median of the sparse variant."""
    second_ms: float
    finding: str
    """Whether the two ratios agree; by their intervals, widened by each report's own noise."""


class LayerComparison(BaseModel):
    """One layer of the sparse variant in both."""

    model_config = _FROZEN

    name: str
    first_ms: float
    second_ms: float
    ratio: float
    """First over second."""
    first_kernel: str
    second_kernel: str


class ComparisonDocument(Document):
    """Printed by `nm2trt compare --json`."""

    SCHEMA: ClassVar[str] = "nm2trt.comparison/1"

    first: str
    second: str
    differences: tuple[DifferenceRecord, ...]
    batches: tuple[BatchComparison, ...]
    layers: tuple[LayerComparison, ...]
    notes: tuple[str, ...]
    sentence: str


def compare_reports(first: Path, second: Path) -> ComparisonDocument:
    """Set two reports side by side.

    Args:
        first: Report folder, or its report.json.
        second: The same of the other.

    Raises:
        InputError: One of them is no report, or they have nothing in common.
    """
    a, b = _read(first), _read(second)
    batches = [_batch(one, other) for one in a.batches for other in b.batches if one.label == other.label]
    layers = _layers(a.layers, b.layers) if a.layers is not None and b.layers is not None else []
    if not batches and not layers:
        raise InputError(
            "the reports share neither a batch size nor a layer",
            where=f"{first} and {second}",
            hint="profile both with one --batch",
        )
    differences = _differences(a, b)
    notes = []
    if any(one.what in ("backend", "device", "precision", "timed") for one in differences):
        notes.append(
            "The two were measured under different conditions (above), so their times do not compare; their ratios may."
        )
    if a.layers is not None and b.layers is not None and a.layers.batch != b.layers.batch:
        notes.append(f"Layers were timed at batch {a.layers.batch} and {b.layers.batch}, so they are left out.")
    return ComparisonDocument(
        first=_title(a, first),
        second=_title(b, second),
        differences=tuple(differences),
        batches=tuple(batches),
        layers=tuple(layers),
        notes=tuple(notes),
        sentence=_sentence(batches),
    )


def _read(path: Path) -> ReportDocument:
    folder = path.parent if path.name == ReportDocument.FILE else path
    return ReportDocument.read(folder, hint="name a folder that `nm2trt profile` wrote")


def _title(report: ReportDocument, path: Path) -> str:
    return f"{path}: {report.sparse.name}, {report.precision}, {report.created_utc}: {report.headline}"


def _differences(a: ReportDocument, b: ReportDocument) -> list[DifferenceRecord]:
    def facts(report: ReportDocument) -> dict[str, str]:
        runner = report.runner
        packages = {f"{name}": version for name, version in report.host.packages.items()}
        return {
            "sparse network": f"{report.sparse.name} ({report.sparse.sha256[:12]})",
            "dense network": f"{report.dense.name} ({report.dense.kind}, {report.dense.sha256[:12]})",
            "method": f"{report.sparse.method or '-'} {report.sparse.pattern or '-'}",
            "precision": report.precision,
            "backend": f"{runner.backend} {runner.version}",
            "device": runner.provider if runner.threads is None else f"{runner.provider}, {runner.threads} threads",
            "timed": f"{runner.clock}; " + "; ".join(f"{key}: {value}" for key, value in runner.settings.items()),
            "processor": report.host.processor,
            "nm2trt": report.nm2trt_version,
            **packages,
        }

    one, other = facts(a), facts(b)
    return [
        DifferenceRecord(what=key, first=one.get(key, "-"), second=other.get(key, "-"))
        for key in dict.fromkeys((*one, *other))
        if one.get(key) != other.get(key)
    ]


def _batch(a: BatchRecord, b: BatchRecord) -> BatchComparison:
    variants = a.variant("sparse"), b.variant("sparse")
    return BatchComparison(
        batch=a.batch,
        first=_ratio(a),
        second=_ratio(b),
        first_ms=variants[0].median_ms if variants[0] is not None else 0.0,
        second_ms=variants[1].median_ms if variants[1] is not None else 0.0,
        finding=_agree(a, b),
    )


def _ratio(record: BatchRecord) -> str:
    ratio = record.ratio
    interval = f"[{ratio.low:.3f}, {ratio.high:.3f}]" if math.isfinite(ratio.high) else "(no interval)"
    return f"{record.baseline} {ratio.value:.3f}x {interval}"


def _agree(a: BatchRecord, b: BatchRecord) -> str:
    """Whether two ratios differ by more than their intervals and noise."""
    if a.baseline != b.baseline:
        return "other baselines: not comparable"
    if "too-few-rounds" in (a.finding, b.finding) or "unpaired" in (a.finding, b.finding):
        return "not decided: one of them has no noise floor"
    low, high = (
        max(one.ratio.low / (1 + one.noise_floor) for one in (a, b)),
        min(one.ratio.high * (1 + one.noise_floor) for one in (a, b)),
    )
    if low <= high:
        return "no difference beyond the noise"
    return "A gains more" if a.ratio.value > b.ratio.value else "B gains more"


def _layers(a: LayersRecord, b: LayersRecord) -> list[LayerComparison]:
    if a.batch != b.batch:
        return []
    others = {row.name: row for row in b.layers}
    found = []
    for row in a.layers:
        other = others.get(row.name)
        if other is None or not row.sparse_ms or not other.sparse_ms:
            continue
        found.append(
            LayerComparison(
                name=row.name,
                first_ms=row.sparse_ms,
                second_ms=other.sparse_ms,
                ratio=row.sparse_ms / other.sparse_ms,
                first_kernel=_KERNELS[row.chosen] if row.weighted else "",
                second_kernel=_KERNELS[other.chosen] if other.weighted else "",
            )
        )
    return sorted(found, key=lambda one: -abs(one.first_ms - one.second_ms))[:_MOST_LAYERS]


def _sentence(batches: list[BatchComparison]) -> str:
    if not batches:
        return "No batch size in common; layers only."
    findings = {one.finding for one in batches}
    if len(findings) == 1:
        return f"At every shared batch size: {findings.pop()}."
    return "; ".join(f"batch {one.batch}: {one.finding}" for one in batches) + "."
