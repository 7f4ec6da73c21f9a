"""report.html: what `nm2trt profile` measured, for people."""

from __future__ import annotations

from nm2trt.artifacts import NetworkRecord, ReportDocument
from nm2trt.report.page import Commands, KeyFigure, Properties, Section, render_page
from nm2trt.report.sections import environment_section, facts_section, latency_section


def profile_page(report: ReportDocument) -> str:
    """Render a measurement as one HTML file."""
    sections = (
        latency_section(report),
        facts_section(report.facts),
        _networks_section(report),
        _method_section(report),
        environment_section(report.host),
    )
    return render_page(
        f"Dense against sparse: {report.sparse.name}",
        _subtitle(report),
        sections,
        headline=report.headline,
        key_figures=_key_figures(report),
        created_utc=report.created_utc,
    )


def _subtitle(report: ReportDocument) -> str:
    sparse = report.sparse
    known = (sparse.model, sparse.method, sparse.pattern, report.precision, f"{report.runner.provider}")
    return " · ".join(part for part in known if part)


def _key_figures(report: ReportDocument) -> list[KeyFigure]:
    figures = [
        KeyFigure(
            f"{batch.ratio.value:.3f}x",
            f"dense / sparse, batch {batch.batch}",
            f"[{batch.ratio.low:.3f}, {batch.ratio.high:.3f}], A/A noise {100 * batch.noise_floor:.1f} %",
        )
        for batch in report.batches[:3]
    ]
    best = max((batch.arms[1] for batch in report.batches), key=lambda arm: arm.throughput_per_s)
    return [*figures, KeyFigure(f"{best.throughput_per_s:,.0f}", "samples/s, sparse arm, best batch")]


def _networks_section(report: ReportDocument) -> Section:
    items = [*_network("Sparse", report.sparse), *_network("Dense", report.dense)]
    return Section("Networks", (Properties(tuple(items)),), lead="Same operators, same shapes, other values.")


def _network(arm: str, record: NetworkRecord) -> list[tuple[str, str]]:
    kind = {"build": "build folder", "onnx": "ONNX file", "filled": "sparse network, zeros filled"}[record.kind]
    trained = " ".join(part for part in (record.method, record.pattern) if part)
    described = f"{record.name} ({kind}{', ' + trained if trained else ''})"
    return [
        (arm, f"{described}; {100 * record.zero_share:.1f} % of its weights are zero"),
        (f"{arm}, sha256", record.sha256),
    ]


def _method_section(report: ReportDocument) -> Section:
    protocol, runner = report.protocol, report.runner
    rounds = ", ".join(f"batch {one.batch}: {one.rounds} of {one.calls_per_round}" for one in report.batches)
    items = (
        ("Arms", "dense; sparse; sparse again, a second copy of the sparse network: the noise floor"),
        ("Order", f"interleaved rounds, shuffled within each, seed {protocol.seed}"),
        ("Rounds of timed calls", rounds),
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
