"""server.html: what `nm2trt check-server` found, for people."""

from __future__ import annotations

from nm2trt.artifacts.server_report import LoadRecord, OutputsRecord, ServerReportDocument
from nm2trt.report.page import Badge, Callout, Commands, Drawing, KeyFigure, Properties, Section, Table, render_page
from nm2trt.report.sections import environment_section
from nm2trt.report.server_load import load_svg

LOAD_COLUMNS = ("clients", "requests", "errors", "wrong", "requests/s", "p50 ms", "p90 ms", "p99 ms", "client cores")


def server_page(report: ServerReportDocument) -> str:
    """Render a check of a server as one HTML file."""
    sections = [_answers_section(report)]
    if report.load:
        sections.append(_load_section(report))
    sections += [_method_section(report), environment_section(report.host, title="Environment of the clients")]
    best = max(report.saturation, key=lambda one: one.throughput_per_s, default=None)
    figures = [KeyFigure(f"{max(one.max_abs_error for one in report.outputs):.2e}", "largest error, absolute")]
    if best is not None:
        figures += [
            KeyFigure(f"{best.throughput_per_s:,.0f}", "requests/s", f"{best.protocol}, {best.concurrency} clients"),
            KeyFigure(f"{best.p99_ms:.2f} ms", "p99 there"),
            KeyFigure(str(sum(one.errors + one.wrong for one in report.load)), "errors and wrong answers"),
        ]
    version = f"version {report.version}" if report.version else "newest version"
    return render_page(
        f"Server check: {report.model}",
        " · ".join((f"build {report.build}", report.precision, version)),
        sections,
        headline=report.headline,
        key_figures=figures,
        created_utc=report.created_utc,
    )


def load_cells(record: LoadRecord) -> tuple[str, ...]:
    """One row under LOAD_COLUMNS."""
    return (
        str(record.concurrency),
        f"{record.requests:,}",
        str(record.errors),
        str(record.wrong),
        f"{record.throughput_per_s:,.0f}",
        f"{record.p50_ms:.2f}",
        f"{record.p90_ms:.2f}",
        f"{record.p99_ms:.2f}",
        f"{record.client_cpu_share:.2f}",
    )


def _answers_section(report: ServerReportDocument) -> Section:
    described = tuple(
        (
            one.protocol,
            Badge("differs", "bad") if one.differences else Badge("agrees", "good"),
            one.server,
            one.platform,
            ", ".join(one.versions),
            "; ".join(one.differences),
        )
        for one in report.metadata
    )
    compared = tuple(
        (
            one.protocol,
            Badge("agree", "good") if one.passed else Badge("differ", "bad"),
            f"{one.max_abs_error:.2e}",
            f"{one.max_rel_error:.2e}",
            f"{one.tolerance:.0e}",
            ", ".join(map(str, one.batches)),
            _samples(one),
        )
        for one in report.outputs
    )
    problems = (
        *(Callout(problem, "bad") for problem in report.problems),
        *(Callout(f"{note[:1].upper()}{note[1:]}.") for note in report.notes),
    )
    return Section(
        "Answers",
        (
            *problems,
            Table(("protocol", "description", "server", "platform", "versions", "differences"), described),
            Table(
                (
                    "protocol",
                    "outputs",
                    "largest error",
                    "relative",
                    "bound",
                    "batches",
                    "samples, largest at",
                ),
                compared,
                numeric=frozenset({2, 3, 4}),
            ),
        ),
        lead="The server's description against the build's; its outputs against ONNX Runtime's on the same samples.",
    )


def _samples(one: OutputsRecord) -> str:
    """What was sent, and what came of it."""
    outcome = "all identical" if one.passed else ""
    if one.max_abs_error > 0 or one.wrong:
        outcome = one.worst_at
    failed = f"{one.errors} of {one.requests} requests failed, first {one.first_error}" if one.errors else ""
    return "; ".join(filter(None, (one.inputs, outcome, failed)))


def _load_section(report: ServerReportDocument) -> Section:
    blocks: list[Callout | Drawing | Table] = []
    for end in report.saturation:
        records = [record for record in report.load if record.protocol == end.protocol]
        blocks += [
            Callout(f"{end.protocol}: {end.sentence}."),
            Drawing(load_svg(records, name=f"load-{end.protocol}")),
            Table(
                LOAD_COLUMNS,
                tuple(load_cells(record) for record in records),
                numeric=frozenset(range(len(LOAD_COLUMNS))),
                caption=f"Load over {end.protocol}",
            ),
        ]
    lead = "Requests of one sample; each client waits for its answer, which is compared, before it asks again."
    return Section("Load", tuple(blocks), lead=lead)


def _method_section(report: ServerReportDocument) -> Section:
    items = (
        ("Latency", "one request from its encoding to its decoded answer, in the client, host clock"),
        ("Throughput", "right answers over wall time; wrong answers and errors do not count"),
        ("Client cores", "processor time of all clients over wall time; clients are threads of one Python process"),
        ("End", "two levels in a row that bring less than 5 % more, or the first level with a failure"),
        ("Graph, sha256", report.onnx_sha256),
    )
    return Section("Method", (Commands((report.command,)), Properties(items)))
