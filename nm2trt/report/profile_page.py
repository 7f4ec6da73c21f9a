"""report.html: what `nm2trt profile` measured, for people."""

from __future__ import annotations

import math

from nm2trt.artifacts import NetworkRecord, ReportDocument
from nm2trt.artifacts.ratio import RatioRecord
from nm2trt.artifacts.report import has_zeros
from nm2trt.report.latency_section import contrasts_section, device_section, latency_section
from nm2trt.report.layer_section import layer_times_section, load_section
from nm2trt.report.page import Commands, KeyFigure, Properties, Section, render_page
from nm2trt.report.sections import environment_section, facts_section


def profile_page(report: ReportDocument) -> str:
    """Render a measurement as one HTML file."""
    sections = [
        latency_section(report),
        contrasts_section(report),
        layer_times_section(report),
        load_section(report.load) if report.load is not None else None,
        facts_section(report.facts),
        _networks_section(report),
        _method_section(report),
        device_section(report),
        environment_section(report.host),
    ]
    return render_page(
        f"Dense against sparse: {report.sparse.name}",
        _subtitle(report),
        [section for section in sections if section is not None],
        headline=report.headline,
        key_figures=_key_figures(report),
        created_utc=report.created_utc,
    )


def _subtitle(report: ReportDocument) -> str:
    sparse = report.sparse
    known = (sparse.model, sparse.method, sparse.pattern, report.precision, f"{report.runner.provider}")
    return " · ".join(part for part in known if part)


def _interval(ratio: RatioRecord) -> str:
    return f"[{ratio.low:.3f}, {ratio.high:.3f}]" if math.isfinite(ratio.high) else "no interval"


def _key_figures(report: ReportDocument) -> list[KeyFigure]:
    figures = [
        KeyFigure(
            f"{batch.ratio.value:.3f}x",
            f"{batch.baseline} / sparse, batch {batch.label}",
            f"{_interval(batch.ratio)}, {_noise(batch.noise_floor)}",
        )
        for batch in report.batches[:3]
        if len(batch.variants) > 1
    ]
    layers = report.layers
    if layers is not None and layers.chosen is not None:
        figures.append(KeyFigure(f"{layers.chosen} of {layers.weighted}", "layers on sparse kernels"))
    best = [variant for batch in report.batches for variant in batch.variants if variant.name == "sparse"]
    if best:
        fastest = max(best, key=lambda variant: variant.throughput_per_s)
        figures.append(KeyFigure(f"{fastest.throughput_per_s:,.0f}", "samples/s, sparse variant, best batch"))
    return figures


def _noise(floor: float) -> str:
    return f"A/A noise {100 * floor:.1f} %" if math.isfinite(floor) else "noise not known"


def _networks_section(report: ReportDocument) -> Section:
    items = [*_network("Sparse", report.sparse), *_network("Dense", report.dense, of=report.sparse)]
    same = report.dense.kind == "filled" and not has_zeros(report.sparse)
    lead = "Same operators, same shapes, same values." if same else "Same operators, same shapes, other values."
    return Section("Networks", (Properties(tuple(items)),), lead=lead)


def _network(variant: str, record: NetworkRecord, *, of: NetworkRecord | None = None) -> list[tuple[str, str]]:
    filled = (
        "sparse network, zeros filled" if of is None or has_zeros(of) else "the same network: it has no zeros to fill"
    )
    kind = {
        "build": "build folder",
        "onnx": "ONNX file",
        "filled": filled,
        "trtexec": "trtexec's files",
        "table": "a table of layer times",
        "run": "run folder",
        "checkpoint": "checkpoint",
        "onnx-products": "the matrix products of an ONNX file",
    }[record.kind]
    trained = " ".join(part for part in (record.method, record.pattern) if part)
    described = f"{record.name} ({kind}{', ' + trained if trained else ''})"
    zeros = f"; {100 * record.zero_share:.1f} % of its weights are zero" if record.zero_share is not None else ""
    return [
        (variant, described + zeros),
        (f"{variant}, sha256", record.sha256),
    ]


_VARIANTS = {
    "dense": "dense: dense weights",
    "control": "control: the sparse weights, sparse kernels not allowed",
    "sparse": "sparse: the sparse weights, sparse kernels allowed where the backend has any",
    "sparse-repeat": "sparse again, a second copy of the sparse network: the noise floor",
    "torch-eager": "PyTorch, eager",
    "torch-compiled": "PyTorch, torch.compile",
}


def _method_section(report: ReportDocument) -> Section:
    protocol, runner = report.protocol, report.runner
    rounds = ", ".join(f"batch {one.label}: {one.rounds} of {one.calls_per_round}" for one in report.batches)
    order = f"interleaved rounds, shuffled within each, seed {protocol.seed}"
    if not any(one.rounds for one in report.batches):
        order = "one variant after the other, as somebody else ran them"
    items = (
        (
            "Variants",
            "; ".join(_VARIANTS[variant.name] for variant in report.batches[0].variants)
            if report.batches
            else "layers only",
        ),
        ("Order", order),
        ("Rounds of timed calls", rounds or "none"),
        ("Budget", f"{protocol.duration_s:g} s per batch size, after warm-up"),
        ("Latency", runner.clock),
        (
            "Interval",
            f"{100 * protocol.confidence:.0f} %, bootstrap of the median paired ratio, {protocol.resamples} resamples",
        ),
        ("Difference", "counts only where the whole interval lies beyond the A/A noise"),
        ("Backend", report.backend_choice),
        *runner.settings.items(),
    )
    return Section("Method", (Commands((report.command,)), Properties(items)))
