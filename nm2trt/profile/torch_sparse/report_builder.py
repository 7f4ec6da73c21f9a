"""report.json of `nm2trt profile --backend torch-sparse`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import numpy as np

from nm2trt.artifacts import (
    BatchRecord,
    Fact,
    Facts,
    FactState,
    LayerEvidence,
    ProtocolRecord,
    ReportDocument,
    host_record,
)
from nm2trt.artifacts.report import ContrastRecord, VariantName
from nm2trt.artifacts.report_layers import LayersRecord, LayerTimeRecord
from nm2trt.profile import statistics
from nm2trt.profile.config import ProfileConfig
from nm2trt.profile.findings import Kernels, sentence
from nm2trt.profile.layer_summary import summarized
from nm2trt.profile.layers import Network, layers_record
from nm2trt.profile.reasons import Setting
from nm2trt.profile.roofline import known_roofline
from nm2trt.profile.torch_sparse.findings import BatchFound, Found, Variants
from nm2trt.profile.torch_sparse.network import TorchNetwork, zero_share
from nm2trt.profile.torch_sparse.reasons import why_not_faster
from nm2trt.reasons import words_of
from nm2trt.torch_sparse.conversion import ProductLayer
from nm2trt.torch_sparse.kernel_names import is_sparse_kernel

_SIZES = {"fp16": 2, "bf16": 2}
_COMPRESSED = 9 / 16
_MUCH = 0.1
"""Of the dense time; less is no reason worth telling."""
_NOUN = "products"
_CONTRASTS: tuple[tuple[VariantName, VariantName, str], ...] = (
    ("dense", "control", "the same kernels: what zeros, and products in place of convolutions, change"),
    ("control", "sparse", "the same weights and modules by 2:4 kernels: what the kernels change"),
)


def report_document(
    found: Found,
    variants: Variants,
    network: TorchNetwork,
    config: ProfileConfig,
    *,
    dense: TorchNetwork | None,
    dense_note: str,
) -> ReportDocument:
    """Put a report together."""
    batches = [batch_record(one, variants.layers, config) for one in found.batches]
    words = " ".join(f"{_label(one)}: {one.sentence}." for one in batches)
    sparse = network.record.model_copy(update={"zero_share": round(zero_share(network.module), 6)})
    dense_record = (
        sparse.model_copy(update={"kind": "filled", "note": dense_note, "method": None, "pattern": None})
        if dense is None
        else dense.record
    )
    notes = [
        f"Outputs of 2:4 and dense kernels on the same weights differ by {found.relative_error:.2g} of the largest one."
    ]
    notes += _time_between_products(batches, found)
    notes += [f"Not measured: {reason}" for reason in found.failed]
    notes += [network.note] if network.note else []
    return ReportDocument(
        sparse=sparse,
        dense=dense_record,
        precision=config.precision,
        runner=found.record,
        backend_choice="torch-sparse was asked for",
        protocol=ProtocolRecord(
            duration_s=config.duration_s,
            seed=config.seed,
            confidence=statistics.CONFIDENCE,
            resamples=statistics.RESAMPLES,
        ),
        batches=batches,
        layers=_layers(found, config) if found.tables else None,
        roofline=known_roofline(found.record.provider, config.precision),
        headline=words,
        facts=facts(variants.layers, found, batches, words),
        notes=tuple(notes),
        command=_command(network, dense, config),
        host=host_record(),
    )


def _time_between_products(batches: Sequence[BatchRecord], found: Found) -> list[str]:
    """Say it where the time that 2:4 costs lies outside the products; told where no launches are in the times."""
    graphs = [one for one in batches if one.mode == "cuda-graph" and one.batch == found.layers_batch]
    if not graphs or not found.tables:
        return []
    medians_ms = {variant.name: variant.median_ms for variant in graphs[0].variants}
    pairs: tuple[tuple[VariantName, VariantName], ...] = (("control", "dense"), ("sparse", "sparse"))
    products_ms: dict[VariantName, float] = {
        name: sum(float(np.median(layer.times_ms)) for layer in found.tables[table]) for name, table in pairs
    }
    outside_ms = {name: medians_ms[name] - products_ms[name] for name in products_ms}
    if outside_ms["sparse"] - outside_ms["control"] < _MUCH * medians_ms["control"]:
        return []
    words = (
        f"At batch {found.layers_batch} under CUDA graphs {outside_ms['sparse']:.3g} of {medians_ms['sparse']:.3g} ms "
        f"with 2:4 kernels lie outside the products, with dense kernels {outside_ms['control']:.3g} of "
        f"{medians_ms['control']:.3g} ms: what comes behind a 2:4 product is slower there (before torch 2.14 its "
        "output lies column by column)."
    )
    return [words]


def _label(one: BatchRecord) -> str:
    return f"Batch {one.label}"


def batch_record(found: BatchFound, layers: Sequence[ProductLayer], config: ProfileConfig) -> BatchRecord:
    """Compare the variants at one batch size in one mode."""
    times = found.measured.latency_ms
    rounds, seed = found.measured.rounds, config.seed
    compared = statistics.compare(times["dense"], times["sparse"], times["sparse-repeat"], seed=seed)
    eligible = sum(layer.reason is None for layer in layers)
    kernels = Kernels(exist=True, chosen=min(found.sparse_kernels, eligible), weighted=len(layers), noun=_NOUN)
    contrasts = []
    for number, (over, under, what) in enumerate(_CONTRASTS):
        ratio = statistics.paired_ratio(times[over], times[under], seed=seed + 2000 + 1000 * number)
        contrasts.append(
            ContrastRecord(
                over=over,
                under=under,
                ratio=ratio,
                finding=statistics.finding_of(ratio, compared.noise_floor, rounds=rounds),
                sentence=f"{over} / {under} {ratio.value:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}]; {what}",
                shows=what,
            )
        )
    return BatchRecord(
        batch=found.batch,
        mode=found.mode,
        rounds=rounds,
        calls_per_round=found.measured.calls_per_round,
        warmup_s=found.measured.warmup_s,
        steady=found.measured.steady,
        baseline="dense",
        variants=tuple(
            statistics.summarize(name, calls_ms, batch=found.batch).model_copy(
                update={"enqueue_ms": found.enqueue_ms.get(name)}
            )
            for name, calls_ms in times.items()
        ),
        ratio=compared.ratio,
        noise=compared.noise,
        noise_floor=compared.noise_floor,
        finding=compared.finding,
        sentence=sentence(compared, rounds=rounds, kernels=kernels),
        contrasts=tuple(contrasts),
        device_before=found.before,
        device_after=found.after,
    )


def _layers(found: Found, config: ProfileConfig) -> LayersRecord:
    evidence = {name: [_evidence(layer, found, name) for layer in found.layers] for name in ("dense", "sparse")}
    setting = Setting(batch=found.layers_batch, sparse_kernels=True)
    tables = {name: found.tables[name] for name in ("dense", "sparse")}
    source = (
        "torch's profiler, kernels of each product in eager mode, in a run apart; dense is the control variant: the "
        "same sparse weights and modules by dense kernels"
    )
    record = layers_record(
        tables, evidence, Network(precision=config.precision), setting, source=source, seed=config.seed
    )
    by_name = {layer.name: layer for layer in found.layers}
    multiprocessors = _multiprocessors()
    rows = [_explained(row, by_name, found, config, multiprocessors) for row in record.layers]
    return summarized(rows, batch=record.batch, source=source, calls=record.calls, seed=config.seed)


def _multiprocessors() -> int | None:
    import torch

    return torch.cuda.get_device_properties(0).multi_processor_count if torch.cuda.is_available() else None


def _evidence(layer: ProductLayer, found: Found, name: str) -> LayerEvidence:
    timed = next((one for one in found.tables["sparse"] if one.name == layer.name), None)
    kernel = timed.kernel if timed is not None else None
    return LayerEvidence(
        name=layer.name,
        type=layer.kind,
        torch_names=(layer.name,),
        kernel=kernel if name == "sparse" else None,
        eligible=layer.reason is None,
        chosen=any(is_sparse_kernel(one) for one in (kernel or "").split(" + "))
        if name == "sparse" and kernel
        else None,
        why=words_of(layer.reason),
    )


def _explained(
    row: LayerTimeRecord,
    by_name: dict[str, ProductLayer],
    found: Found,
    config: ProfileConfig,
    multiprocessors: int | None,
) -> LayerTimeRecord:
    layer = by_name.get(row.name)
    if layer is None:
        return row
    size = _SIZES[config.precision]
    activations, weights = size * layer.m * (layer.n + layer.k), size * layer.n * layer.k
    complete = row.model_copy(
        update={
            "flops": layer.flops,
            "bytes": activations + weights,
            "bytes_sparse": int(activations + _COMPRESSED * weights),
        }
    )
    reasons = why_not_faster(
        complete, layer, multiprocessors=multiprocessors, sparse_share=found.sparse_shares.get(layer.name)
    )
    return complete.model_copy(
        update={"reasons": tuple(reason for reason, _ in reasons), "advice": tuple(advice for _, advice in reasons)}
    )


def facts(layers: Sequence[ProductLayer], found: Found, batches: Sequence[BatchRecord], words: str) -> Facts:
    """State the four facts, each from its own observation."""
    where = f"in this run (PyTorch {found.record.version}, {found.record.provider})"
    broken = sum(layer.reason is not None and layer.reason.code == "broken-pattern" for layer in layers)
    eligible = sum(layer.reason is None for layer in layers)
    counted = [layer for layer in layers if layer.reason is None or layer.reason.code == "broken-pattern"]
    chosen = min((one.sparse_kernels for one in found.batches), default=0)
    faster = [_label(one).lower() for one in batches if one.finding == "sparse-faster"]
    undecided = any(one.finding == "too-few-rounds" for one in batches)
    return Facts(
        legal=Fact(
            state=FactState.DISPROVED if broken else FactState.PROVED,
            evidence=f"{len(counted) - broken} of {len(counted)} products that torch could take are 2:4, counted in "
            "the weights as they run",
        ),
        eligible=Fact(
            state=FactState.PROVED if eligible else FactState.DISPROVED,
            evidence=f"{eligible} of {len(layers)} {_NOUN} keep torch's rules (dtype, multiples, contiguity); "
            "TensorRT's rules are others",
        ),
        chosen=Fact(
            state=FactState.PROVED if chosen else FactState.DISPROVED,
            evidence=f"{where}: at least {min(chosen, eligible)} of {len(layers)} {_NOUN} ran kernels with sparse "
            "names, by torch's profiler",
        ),
        faster=Fact(
            state=FactState.PROVED
            if faster and chosen
            else FactState.UNKNOWN
            if undecided or not chosen
            else FactState.DISPROVED,
            evidence=f"{where}: {words}"
            if len(faster) == len(batches) or not faster
            else f"{where}, only at {', '.join(faster)}: {words}",
        ),
    )


def _command(network: TorchNetwork, dense: TorchNetwork | None, config: ProfileConfig) -> str:
    words = ["nm2trt", "profile", network.record.name, "--backend", "torch-sparse"]
    if dense is not None:
        words += ["--dense", dense.record.name]
    if network.record.model is not None and network.record.kind == "checkpoint":
        words += ["--model", network.record.model]
    words += ["--precision", config.precision, "--mode", ",".join(config.modes)]
    words += ["--batch", ",".join(map(str, config.batches)), "--duration", f"{config.duration_s:g}"]
    if not config.layers:
        words.append("--no-layers")
    return shlex.join([*words, "--seed", str(config.seed), "-o", "report"])
