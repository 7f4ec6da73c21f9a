"""From measurements to report.json: records, the four facts, the line that repeats it all."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nm2trt.artifacts import (
    BatchRecord,
    Fact,
    Facts,
    FactState,
    NetworkRecord,
    ProtocolRecord,
    ReportDocument,
    RunnerRecord,
    VariantRecord,
    host_record,
)
from nm2trt.artifacts.ratio import RatioRecord
from nm2trt.artifacts.report import CLOCK_SPREAD, LAUNCH_BOUND, ContrastRecord, DeviceState, SpreadRecord, VariantName
from nm2trt.artifacts.report_layers import LayersRecord, LoadRecord, RooflineRecord
from nm2trt.onnx_tools.graph_compare import precision_of
from nm2trt.profile import statistics
from nm2trt.profile.config import ProfileConfig
from nm2trt.profile.findings import Kernels, headline, sentence
from nm2trt.profile.layers import LayerTable, layers_record, network_of
from nm2trt.profile.measure import Measurement
from nm2trt.profile.reasons import Setting
from nm2trt.profile.source import Source
from nm2trt.profile.variants import Variants


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantExtras:
    """What was measured of a variant beside the rounds."""

    with_transfers: SpreadRecord | None = None
    enqueue_ms: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMeasurement:
    """One build of all variants at one batch size."""

    measured: Measurement
    extras: Mapping[VariantName, VariantExtras]
    before: DeviceState | None
    after: DeviceState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Everything that was measured."""

    record: RunnerRecord
    batches: Mapping[int, Sequence[BatchMeasurement]]
    """Batch -> one entry for each build."""
    layers: Mapping[VariantName, LayerTable]
    layers_batch: int
    roofline: RooflineRecord | None
    multiprocessors: int | None
    load: LoadRecord | None


def document(
    found: Found,
    variants: Variants,
    config: ProfileConfig,
    sparse: Source,
    dense: Source | None,
    *,
    choice: str,
    dense_given: bool,
    reference: Path | None = None,
) -> ReportDocument:
    """Put a report together."""
    layers = _layers(found, variants, sparse, config) if found.layers else None
    kernels = _kernels(variants, found.record, layers)
    batches = [_batch_record(batch, builds, variants, config, kernels) for batch, builds in found.batches.items()]
    words = headline(
        {one.batch: one.sentence for one in batches},
        {one.batch: one.noise_floor for one in batches},
        {one.batch: one.finding for one in batches},
    )
    dense_record = dense.record if dense is not None else _control_record(sparse.record, variants)
    return ReportDocument(
        sparse=sparse.record,
        dense=dense_record,
        precision=precision_of(sparse.model),
        runner=found.record,
        backend_choice=choice,
        protocol=ProtocolRecord(
            duration_s=config.duration_s,
            seed=config.seed,
            confidence=statistics.CONFIDENCE,
            resamples=statistics.RESAMPLES,
            rebuilds=config.rebuilds,
        ),
        batches=batches,
        layers=layers,
        roofline=found.roofline,
        load=found.load,
        headline=words,
        facts=facts(sparse, found.record, kernels, batches, words),
        notes=variants.notes,
        command=_command(sparse.record, dense_record if dense_given else None, found.record, config, reference),
        host=host_record(),
    )


def _layers(found: Found, variants: Variants, sparse: Source, config: ProfileConfig) -> LayersRecord:
    batch = found.layers_batch
    last = found.batches[batch][-1]
    clocks = [one.clock_sm_mhz for one in (last.before, last.after) if one is not None and one.clock_sm_mhz]
    enqueue_ms = last.extras["sparse"].enqueue_ms
    compute_ms = float(np.median(last.measured.latency_ms["sparse"]))
    setting = Setting(
        batch=batch,
        sparse_kernels=found.record.sparse_kernels,
        tuned_for=variants.tuned_for,
        multiprocessors=found.multiprocessors,
        launch_bound=enqueue_ms is not None and enqueue_ms > LAUNCH_BOUND * compute_ms,
        clocks_moved=bool(clocks) and max(clocks) > CLOCK_SPREAD * min(clocks),
        roofline=found.roofline,
    )
    whose = {"onnxruntime": "ONNX Runtime's own profiler"}.get(found.record.backend, "TensorRT's own profiler")
    return layers_record(
        {"dense": found.layers[variants.baseline], "sparse": found.layers["sparse"]},
        {"dense": variants.evidence.get(variants.baseline, ()), "sparse": variants.evidence.get("sparse", ())},
        network_of(sparse, batch=batch, shapes=config.shapes),
        setting,
        source=f"{whose}, in a run apart from the end-to-end timing, variants interleaved call by call",
        seed=config.seed,
    )


def _control_record(sparse: NetworkRecord, variants: Variants) -> NetworkRecord:
    note = "" if variants.baseline == "dense" else "The baseline has the sparse weights; only the flag is off."
    return sparse.model_copy(update={"note": note})


def _kernels(variants: Variants, record: RunnerRecord, layers: LayersRecord | None) -> Kernels:
    """Count sparse kernels in what the build shows; the layers' run only adds which of them have weights."""
    evidence = variants.evidence.get("sparse", ())
    checked = [layer for layer in evidence if layer.chosen is not None]
    weighted = layers.weighted if layers is not None else len(checked)
    chosen = sum(bool(layer.chosen) for layer in checked) if checked else None
    return Kernels(exist=record.sparse_kernels, chosen=chosen, weighted=max(weighted, chosen or 0))


def _batch_record(
    batch: int, builds: Sequence[BatchMeasurement], variants: Variants, config: ProfileConfig, kernels: Kernels
) -> BatchRecord:
    seed = config.seed

    def ratio(over: VariantName, under: VariantName, offset: int) -> list[RatioRecord]:
        return [
            statistics.paired_ratio(
                one.measured.latency_ms[over], one.measured.latency_ms[under], seed=seed + offset + number
            )
            for number, one in enumerate(builds)
        ]

    rounds = min(one.measured.rounds for one in builds)
    ratios = ratio(variants.baseline, "sparse", 0)
    noise = statistics.over_builds(ratio("sparse-repeat", "sparse", 1000))
    found = statistics.classify_ratio(statistics.over_builds(ratios), noise, rounds=rounds)
    contrasts = []
    for number, (over, under) in enumerate(variants.contrasts):
        joined = statistics.over_builds(ratio(over, under, 2000 + 1000 * number))
        contrasts.append(_contrast(over, under, joined, found.noise_floor, rounds))
    return BatchRecord(
        batch=batch,
        rounds=sum(one.measured.rounds for one in builds),
        calls_per_round=builds[0].measured.calls_per_round,
        warmup_s=max(one.measured.warmup_s for one in builds),
        steady=all(one.measured.steady for one in builds),
        baseline=variants.baseline,
        variants=tuple(_arm_record(name, builds, batch) for name in variants.factories),
        ratio=found.ratio,
        noise=found.noise,
        noise_floor=found.noise_floor,
        finding=found.finding,
        sentence=sentence(found, rounds=rounds, kernels=kernels),
        build_ratios=tuple(ratios) if len(ratios) > 1 else (),
        contrasts=tuple(contrasts),
        tuned_for=variants.tuned_for,
        device_before=builds[0].before,
        device_after=builds[-1].after,
    )


def _contrast(over: VariantName, under: VariantName, ratio: RatioRecord, floor: float, rounds: int) -> ContrastRecord:
    finding = statistics.finding_of(ratio, floor, rounds=rounds)
    what = {
        ("dense", "control"): "sparse weights without sparse kernels: what zeros alone change (power, clocks), and the "
        "difference between two builds",
        ("control", "sparse"): "the same weights with sparse kernels allowed: what the kernels change",
    }.get((over, under), "")
    return ContrastRecord(
        over=over,
        under=under,
        ratio=ratio,
        finding=finding,
        sentence=f"{over} / {under} {ratio.value:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}]; {what}",
        shows=what,
    )


def _arm_record(name: VariantName, builds: Sequence[BatchMeasurement], batch: int) -> VariantRecord:
    calls_ms = np.concatenate([one.measured.latency_ms[name].ravel() for one in builds])
    extras = builds[-1].extras[name]
    return statistics.summarize(name, calls_ms, batch=batch).model_copy(
        update={
            "with_transfers": extras.with_transfers,
            "enqueue_ms": extras.enqueue_ms,
            "memory_bytes": extras.memory_bytes,
        }
    )


def facts(sparse: Source, record: RunnerRecord, kernels: Kernels, batches: Sequence[BatchRecord], words: str) -> Facts:
    """State the four facts: the first two as the build proved them, the others as observed in this run."""
    unchecked = Fact(
        state=FactState.UNKNOWN,
        evidence="a bare ONNX file was profiled and nothing checked it here; nm2trt verify does",
    )
    known = sparse.build.facts if sparse.build else None
    return Facts(
        legal=known.legal if known else unchecked,
        eligible=known.eligible if known else unchecked,
        chosen=_chosen(record, kernels),
        faster=_faster(record, kernels, batches, words),
    )


def _where(record: RunnerRecord) -> str:
    names = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
    return f"{names.get(record.backend, record.backend)} {record.version}, {record.provider}"


def _chosen(record: RunnerRecord, kernels: Kernels) -> Fact:
    where = f"in this run ({_where(record)})"
    if record.sparse_kernels is False:
        return Fact(
            state=FactState.DISPROVED,
            evidence=f"{where}: no 2:4 kernels exist there, so none ran; TensorRT's choice was not observed",
        )
    if kernels.chosen is None:
        return Fact(state=FactState.UNKNOWN, evidence=f"{where}: the kernels that ran are not reported")
    state = FactState.PROVED if kernels.chosen else FactState.DISPROVED
    return Fact(
        state=state,
        evidence=f"{where}: {kernels.chosen} of {kernels.weighted} {kernels.noun} run sparse kernels, by the engine's "
        "kernel names or the builder's log",
    )


def _faster(record: RunnerRecord, kernels: Kernels, batches: Sequence[BatchRecord], words: str) -> Fact:
    where = _where(record)
    if record.sparse_kernels is False or not kernels.chosen:
        return Fact(
            state=FactState.UNKNOWN,
            evidence=f"a gain from sparsity cannot show in this run ({where}). Measured: {words}",
        )
    faster = [one.batch for one in batches if one.finding == "sparse-faster"]
    if len(faster) == len(batches):
        return Fact(state=FactState.PROVED, evidence=f"in this run ({where}): {words}")
    if faster:
        return Fact(
            state=FactState.PROVED, evidence=f"at batch {', '.join(map(str, faster))} only, in this run: {words}"
        )
    undecided = any(one.finding == "too-few-rounds" for one in batches)
    return Fact(
        state=FactState.UNKNOWN if undecided else FactState.DISPROVED, evidence=f"in this run ({where}): {words}"
    )


def _command(
    sparse: NetworkRecord,
    dense: NetworkRecord | None,
    record: RunnerRecord,
    config: ProfileConfig,
    reference: Path | None,
) -> str:
    words = ["nm2trt", "profile", sparse.name]
    if dense is not None:
        words += ["--dense", dense.name]
    if reference is not None:
        words += ["--reference", reference.resolve().name]
    words += ["--backend", record.backend]
    if record.backend == "onnxruntime" and config.provider != "auto":
        words += ["--provider", config.provider]
    words += ["--batch", ",".join(map(str, config.batches)), "--duration", f"{config.duration_s:g}"]
    if config.rebuilds > 1:
        words += ["--rebuilds", str(config.rebuilds)]
    for name, sizes in config.shapes.items():
        words += ["--shape", f"{name}={'x'.join(map(str, sizes))}"]
    if config.streams:
        words += ["--streams", str(config.streams)]
    if config.rates:
        words += ["--rate", ",".join(f"{rate:g}" for rate in config.rates)]
    if not config.layers:
        words.append("--no-layers")
    return shlex.join([*words, "--seed", str(config.seed), "-o", "report"])
