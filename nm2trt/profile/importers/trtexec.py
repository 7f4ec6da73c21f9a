"""Others' measurements in the same report: trtexec's files, or a table of layer times."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nm2trt.artifacts import (
    BatchRecord,
    Fact,
    Facts,
    FactState,
    LayerEvidence,
    NetworkRecord,
    ProtocolRecord,
    ReportDocument,
    RunnerRecord,
    host_record,
    sha256_of,
)
from nm2trt.artifacts.ratio import RatioRecord
from nm2trt.artifacts.report import LAUNCH_BOUND, VariantName
from nm2trt.artifacts.report_layers import LayersRecord, LayerTimeRecord
from nm2trt.errors import ConfigError
from nm2trt.evidence.layer_table import TableRow, read_layer_table
from nm2trt.evidence.layer_work import work_of
from nm2trt.evidence.layers import engine_evidence
from nm2trt.evidence.names import split_profile
from nm2trt.evidence.trtexec import TrtexecRun, read_trtexec
from nm2trt.profile import statistics
from nm2trt.profile.comparable import check_comparable, comparison_notes
from nm2trt.profile.findings import Kernels
from nm2trt.profile.importers.trtexec_batch import batch_record, is_timed
from nm2trt.profile.layer_summary import summarized
from nm2trt.profile.layers import Network, layers_record, network_of
from nm2trt.profile.reasons import Setting
from nm2trt.profile.roofline import known_roofline
from nm2trt.profile.runners.runner import LayerTimes

_UNPAIRED = (
    "The runs were timed one after the other, so whatever changed between the runs is in the ratio: clocks, heat, "
    "another build. An interval, where there is one, covers only what varied within each run."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrtexecPaths:
    """Folders or prefixes of trtexec's files."""

    sparse: Path | None = None
    dense: Path | None = None
    again: Path | None = None
    """A second run of the sparse engine: the only measure of what changes between runs."""


def import_trtexec(
    paths: TrtexecPaths, *, model: Path | None = None, batch: int | None = None, seed: int = 0
) -> ReportDocument:
    """Make a report of trtexec's files.

    Args:
        paths: At least one of `sparse` and `dense`.
        model: The network's ONNX file or build folder, if at hand: leads layers back to its operators.
        batch: Where no file tells it.
        seed: Of the bootstrap.

    Raises:
        ConfigError: No run was named, or no file tells the batch.
        InputError: A run cannot be read, or two runs differ in precision, shape or what was timed.
    """
    named: dict[VariantName, Path | None] = {"dense": paths.dense, "sparse": paths.sparse, "sparse-repeat": paths.again}
    runs = {variant: read_trtexec(path) for variant, path in named.items() if path is not None}
    if not {"dense", "sparse"} & set(runs):
        raise ConfigError("no run was named", where="--trtexec-sparse, --trtexec-dense")
    check_comparable(runs)
    first = runs.get("sparse") or runs["dense"]
    size = batch or next((run.batch for run in runs.values() if run.batch), None)
    if size is None:
        raise ConfigError("no file tells the batch size", where=first.name, hint="give it with --batch N")
    precision = first.precision.lower() or "precision not known"
    layers = _layers(runs, model, size, precision, seed)
    kernels = _kernels(runs, layers)
    record = batch_record(runs, size, kernels, seed)
    words = _headline(record, layers, runs)
    return ReportDocument(
        sparse=_network(runs.get("sparse") or runs["dense"]),
        dense=_network(runs.get("dense") or runs["sparse"]),
        precision=precision,
        runner=_runner(first),
        backend_choice="trtexec's own files were given; nothing was run here",
        protocol=_protocol(seed),
        batches=[record] if record is not None else [],
        layers=layers,
        roofline=known_roofline(first.gpu, precision),
        headline=words,
        facts=_facts(kernels, words, f"trtexec {first.version}".strip(), compared=record is not None and len(runs) > 1),
        notes=(*_notes(runs, record), *_batch_notes(runs, size)),
        command=_command(paths, model, size if batch else None),
        host=host_record(),
    )


def _layers(
    runs: Mapping[VariantName, TrtexecRun], model: Path | None, batch: int, precision: str, seed: int
) -> LayersRecord | None:
    profiled: dict[VariantName, TrtexecRun] = {
        variant: run for variant, run in runs.items() if variant != "sparse-repeat" and run.layers
    }
    if not profiled:
        return None
    by_median = has_medians(profiled)
    tables = {variant: _table(run, by_median=by_median) for variant, run in profiled.items()}
    network = Network(precision=precision)
    if model is not None:
        from nm2trt.profile.source import read_source

        network = network_of(read_source(model), batch=batch, shapes={})
    work = {name: one for run in runs.values() for name, one in work_of(run.inspection).items()}
    network = replace(network, work={} if network.geometry else work)
    evidence: dict[str, tuple[LayerEvidence, ...]] = {
        variant: engine_evidence(run.inspection, run.log, network.graph, profile=_timed_profile(run)).layers
        for variant, run in runs.items()
        if variant in tables and (run.inspection is not None or run.log is not None)
    }
    either = runs.get("sparse") or runs["dense"]
    enqueue_ms, compute_ms = _medians(either)
    setting = Setting(
        batch=batch,
        sparse_kernels=True,
        multiprocessors=either.multiprocessors,
        launch_bound=enqueue_ms > LAUNCH_BOUND * compute_ms and either.toggles.graph is False,
        roofline=known_roofline(either.gpu, precision),
    )
    return layers_record(
        {"dense": tables.get("dense", ()), "sparse": tables.get("sparse", ())},
        evidence,
        network,
        setting,
        source=f"trtexec's profile, {either.iterations} iterations, {'medians' if by_median else 'means'}",
        seed=seed,
    )


def _timed_profile(run: TrtexecRun) -> int | None:
    """Optimization profile of the layers that were timed; None where several were."""
    numbers = {split_profile(layer.name)[1] for layer in run.layers}
    return numbers.pop() if len(numbers) == 1 else None


def _medians(run: TrtexecRun) -> tuple[float, float]:
    """Median enqueue and compute times in ms; 0 and infinity where no file tells."""
    enqueue_ms = run.enqueue_summary.median_ms if run.enqueue_summary is not None else 0.0
    compute_ms = run.summary.median_ms if run.summary is not None else float("inf")
    if run.enqueue_ms is not None:
        enqueue_ms = float(np.median(run.enqueue_ms))
    if run.compute_ms is not None:
        compute_ms = float(np.median(run.compute_ms))
    return enqueue_ms, compute_ms


def has_medians(profiled: Mapping[VariantName, TrtexecRun]) -> bool:
    """Whether every profile has medians: only then are they compared, else the means of both."""
    return all(layer.median_ms is not None for run in profiled.values() for layer in run.layers)


def _table(run: TrtexecRun, *, by_median: bool) -> list[LayerTimes]:
    return [
        LayerTimes(
            name=layer.name,
            type="",
            times_ms=(layer.median_ms if by_median and layer.median_ms is not None else layer.average_ms,),
        )
        for layer in run.layers
    ]


def _kernels(runs: Mapping[VariantName, TrtexecRun], layers: LayersRecord | None) -> Kernels:
    sparse = runs.get("sparse")
    if sparse is None:
        return Kernels(exist=True)
    if layers is not None and layers.chosen is not None:
        # Where the log lists what it chose, layers that hide their weights hide no sparse kernel.
        hidden = layers.weights_unknown and not (sparse.log is not None and sparse.log.names_layers)
        return Kernels(exist=True, chosen=layers.chosen or (None if hidden else 0), weighted=layers.weighted)
    if sparse.inspection is None and sparse.log is None:
        return Kernels(exist=True)
    found = engine_evidence(sparse.inspection, sparse.log)
    eligible = [one for one in found.layers if one.eligible]
    if eligible:
        chosen = sum(one.chosen is True for one in eligible)
        is_seen = all(one.chosen is not None for one in eligible)
        return Kernels(
            exist=True, chosen=chosen if chosen or is_seen else None, weighted=len(eligible), noun="eligible layers"
        )
    known = found.log_chosen if found.log_chosen or sparse.log is None or sparse.log.zero_is_known else None
    return Kernels(exist=True, chosen=known, weighted=found.log_eligible or 0, noun="eligible layers")


def _headline(record: BatchRecord | None, layers: LayersRecord | None, runs: Mapping[VariantName, TrtexecRun]) -> str:
    if record is not None:
        text = record.sentence[0].upper() + record.sentence[1:] + "."
        return f"{text} Layers: {layers.sentence}." if layers is not None and layers.net is not None else text
    if len(set(runs) - {"sparse-repeat"}) == 1:
        only = next(iter(runs))
        median_ms = _medians(runs[only])[1]
        words = f" GPU compute median {median_ms:.4g} ms." if np.isfinite(median_ms) else ""
        return f"One engine was given ({only}), so nothing is compared.{words}"
    if layers is not None:
        return f"No times of whole calls were given. Layers: {layers.sentence}."
    without = [variant for variant in ("dense", "sparse") if not is_timed(runs[variant])]
    return f"Nothing could be compared: no file tells times of the {' and the '.join(without)} run."


def _network(run: TrtexecRun) -> NetworkRecord:
    return NetworkRecord(kind="trtexec", name=run.name, sha256=sha256_of(run.files[0]), zero_share=None)


def _runner(run: TrtexecRun) -> RunnerRecord:
    return RunnerRecord(
        backend="trtexec",
        version=run.version or "of unknown version",
        provider=run.gpu or "GPU not named",
        threads=None,
        settings={"timed": run.toggles.words(), "known from": run.toggles_source},
        clock="GPU compute time between two CUDA events, as trtexec exports it",
        sparse_kernels=True,
        note="Measured by trtexec, elsewhere and earlier. TensorRT has 2:4 kernels; whether one ran is told by kernel "
        "names in the layer file or by (Sparsity) lines of the log, never by the flag.",
    )


def _protocol(seed: int) -> ProtocolRecord:
    return ProtocolRecord(
        duration_s=0.0, seed=seed, confidence=statistics.CONFIDENCE, resamples=statistics.RESAMPLES, rebuilds=1
    )


def _notes(runs: Mapping[VariantName, TrtexecRun], record: BatchRecord | None) -> tuple[str, ...]:
    notes = [
        f"{variant}: trtexec {run.version or '(version not known)'}, {run.toggles.words()} (from {run.toggles_source})."
        for variant, run in runs.items()
    ]
    notes += comparison_notes(runs)
    profiled: dict[VariantName, TrtexecRun] = {
        variant: run for variant, run in runs.items() if variant != "sparse-repeat" and run.layers
    }
    if len(profiled) > 1 and not has_medians(profiled):
        without = [variant for variant, run in profiled.items() if not has_medians({variant: run})]
        notes.append(
            f"Layers are compared by means: the profile of the {' and '.join(without)} run has no medians (trtexec "
            "up to 8.3 wrote none)."
        )
    for variant, run in runs.items():
        notes += [f"{variant}: {note}." for note in run.notes]
        if run.compute_ms is None and run.summary is not None:
            one = run.summary
            count = f" of {one.samples} calls" if one.samples else ""
            notes.append(
                f"{variant}: no single times; trtexec's summary{count}: GPU compute median {one.median_ms:.4g} "
                f"ms, {one.low_ms:.4g} to {one.high_ms:.4g} ms."
            )
    if any(None in (run.toggles.graph, run.toggles.transfers) for run in runs.values()):
        notes.append(
            "Up to trtexec 10, transfers are timed, CUDA graph and spin wait are off by default; from 11 it is the "
            "other way round. Without the log, it is not known which holds here."
        )
    if record is not None:
        notes.append(_UNPAIRED)
    return tuple(notes)


def _batch_notes(runs: Mapping[VariantName, TrtexecRun], batch: int) -> list[str]:
    told = sorted({run.batch for run in runs.values() if run.batch})
    if not told or batch in told:
        return []
    return [f"The files tell batch {', '.join(map(str, told))}; batch {batch} was given and is taken."]


def _facts(kernels: Kernels, words: str, where: str, *, compared: bool) -> Facts:
    unseen = Fact(state=FactState.UNKNOWN, evidence="the network's weights were not given; nm2trt verify checks them")
    if kernels.chosen is None:
        chosen = Fact(state=FactState.UNKNOWN, evidence="no file shows which kernels ran")
    else:
        state = FactState.PROVED if kernels.chosen else FactState.DISPROVED
        chosen = Fact(
            state=state,
            evidence=f"{where}: {kernels.chosen} of {kernels.weighted} {kernels.noun} run sparse kernels",
        )
    evidence = f"measured elsewhere ({where}), variants not interleaved: {words}" if compared else "not measured"
    return Facts(legal=unseen, eligible=unseen, chosen=chosen, faster=Fact(state=FactState.UNKNOWN, evidence=evidence))


def _command(paths: TrtexecPaths, model: Path | None, batch: int | None) -> str:
    words = ["nm2trt", "profile", *([model.name] if model is not None else [])]
    for option, path in (("sparse", paths.sparse), ("dense", paths.dense), ("again", paths.again)):
        if path is not None:
            words += [f"--trtexec-{option}", path.name]
    return shlex.join([*words, *(["--batch", str(batch)] if batch else []), "-o", "report"])


def import_table(path: Path, *, batch: int, seed: int = 0) -> ReportDocument:
    """Make a report of a table of layer times (CSV).

    Args:
        path: See nm2trt/evidence/layer_table.py for its columns.
        batch: Samples of a call.
        seed: Of the bootstrap.

    Raises:
        InputError: The table cannot be read.
    """
    rows = read_layer_table(path)
    total_ms = sum(row.sparse_ms for row in rows)
    records = [_table_row(row, batch, total_ms) for row in rows]
    layers = summarized(records, batch=batch, source=f"the table {path.name}", calls=1, seed=seed)
    kernels = Kernels(exist=True, chosen=layers.chosen, weighted=layers.weighted)
    network = NetworkRecord(kind="table", name=path.name, sha256=sha256_of(path), zero_share=None)
    words = f"Layers only: {layers.sentence}."
    return ReportDocument(
        sparse=network,
        dense=network,
        precision="as in the table",
        runner=RunnerRecord(
            backend="table",
            version="",
            provider="measured elsewhere",
            threads=None,
            settings={},
            clock="as whoever wrote the table took it",
            sparse_kernels=True,
            note="A table of layer times that somebody else measured; nothing was run here, and no call was timed end "
            "to end.",
        ),
        backend_choice="a table of layer times was given; nothing was run here",
        protocol=_protocol(seed),
        batches=[],
        layers=layers,
        headline=words,
        facts=_facts(kernels, words, path.name, compared=True),
        command=shlex.join(["nm2trt", "profile", "--layer-times", path.name, "--batch", str(batch), "-o", "report"]),
        host=host_record(),
    )


def _table_row(row: TableRow, batch: int, total_ms: float) -> LayerTimeRecord:
    value = row.dense_ms / row.sparse_ms
    shape = f"{row.c_in} -> {row.c_out}, {row.kernel}x{row.kernel}, {row.out_size}x{row.out_size}" if row.c_in else ""
    return LayerTimeRecord(
        name=row.name,
        type="Conv" if row.kernel is not None else "",
        shape=shape,
        dense_ms=row.dense_ms,
        sparse_ms=row.sparse_ms,
        ratio=RatioRecord(value=value, low=value, high=value),
        share=row.sparse_ms / total_ms,
        weighted=True,
        chosen=row.chosen,
        flops=row.flops(batch),
        reasons=("no sparse kernel ran",) if row.chosen is False else (),
        advice=("nm2trt verify and nm2trt inspect tell why",) if row.chosen is False else (),
    )
