"""Sections below the end-to-end time: layers, roofline, and behavior under load."""

from __future__ import annotations

from nm2trt.artifacts import ReportDocument
from nm2trt.artifacts.report_layers import LayersRecord, LayerTimeRecord, LoadRecord
from nm2trt.report.layer_figures import bars_svg, load_svg, roofline_svg
from nm2trt.report.page import Badge, Block, Cell, Drawing, Prose, Section, Table

_MOST_ROWS = 200


def layer_times_section(report: ReportDocument) -> Section | None:
    """Bars, roofline and table of all layers; None where no layer was timed."""
    layers = report.layers
    if layers is None:
        return None
    blocks: list[Block] = [Prose(f"{layers.sentence}.")]
    bars = bars_svg(layers, name="layer-bars")
    blocks.append(
        Drawing(
            f'<div class="figure">{bars}</div>',
            "The longest layers. ● a sparse kernel ran, ○ eligible, but none was seen to run.",
        )
    )
    roofline = roofline_svg(layers, report.roofline, name="roofline")
    if roofline:
        source = f"Ceilings: {report.roofline.source}." if report.roofline else "The machine's ceilings are not known."
        blocks.append(
            Drawing(f'<div class="narrow">{roofline}</div>', f"Roofline, sparse variant, one dot a layer. {source}")
        )
    blocks.append(_table(layers))
    blocks.append(Prose(f"{layers.source}. The sum exceeds the end-to-end time, because profiling costs.", quiet=True))
    return Section("Layers", tuple(blocks), lead=f"Batch {layers.batch}, median of {layers.calls} calls.")


def _table(layers: LayersRecord) -> Table:
    longest = sorted(layers.layers, key=lambda row: -(row.sparse_ms or row.dense_ms or 0.0))[:_MOST_ROWS]
    columns = ("layer", "dense ms", "sparse ms", "ratio", "share", "eligible", "sparse kernel", "why not faster", "try")
    rows = tuple(_row(row) for row in longest)
    cut = len(layers.layers) - len(rows)
    caption = f"The longest {len(rows)} of {len(layers.layers)}; report.json holds them all." if cut else ""
    return Table(columns, rows, numeric=frozenset({1, 2, 3, 4}), code=frozenset({0}), caption=caption)


def _row(row: LayerTimeRecord) -> tuple[Cell, ...]:
    return (
        row.name if len(row.name) <= 60 else f"{row.name[:57]}...",
        _ms(row.dense_ms),
        _ms(row.sparse_ms),
        f"{row.ratio.value:.2f}x" if row.ratio is not None else "",
        f"{100 * row.share:.1f} %",
        _badge(row.eligible, weighted=row.weighted),
        _badge(row.chosen, weighted=row.weighted),
        "; ".join(row.reasons),
        "; ".join(dict.fromkeys(row.advice)),
    )


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _badge(state: bool | None, *, weighted: bool | None) -> Cell:
    if weighted is False:
        return ""
    return Badge("not seen", "unknown") if state is None else Badge("yes", "good") if state else Badge("no")


def load_section(load: LoadRecord) -> Section:
    """Latency at given rates."""
    rows: list[tuple[Cell, ...]] = [
        (
            f"{one.rate_per_s:,.4g}",
            one.variant,
            f"{one.achieved_per_s:,.4g}",
            *(f"{value:.4g}" for value in (one.median_ms, one.p90_ms, one.p99_ms, one.max_ms)),
            f"{100 * one.waiting_share:.0f} %",
            Badge("queue grows", "bad") if one.saturated else Badge("holds", "good"),
        )
        for one in load.points
    ]
    columns = ("due/s", "variant", "done/s", "median ms", "p90 ms", "p99 ms", "max ms", "waiting", "rate")
    late = max((one.lateness_p99_ms for one in load.points), default=0.0)
    notes = (
        f"Requests fall due at random moments (Poisson, seed {load.seed}), the same for every variant, whether or not "
        "earlier ones are done; a latency counts from the moment its request was due. The program itself began up to "
        f"{late:.2g} ms late (99 % of requests that found a free stream), which is part of the latencies."
    )
    return Section(
        "Under load",
        (
            Drawing(f'<div class="narrow">{load_svg(load, name="load")}</div>'),
            Table(columns, tuple(rows), numeric=frozenset({0, 2, 3, 4, 5, 6, 7})),
            Prose(notes, quiet=True),
        ),
        lead=load.sentence,
    )
