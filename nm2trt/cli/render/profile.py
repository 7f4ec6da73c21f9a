"""A measurement on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nm2trt.cli.common import stdout_console

if TYPE_CHECKING:
    from rich.table import Table

    from nm2trt.pipelines.profile import BatchRecord, LayersRecord, LoadRecord, ReportDocument

_MOST_LAYERS = 15


def show(report: ReportDocument, output: Path) -> None:
    """Print the tables, the remarks and the verdict."""
    from nm2trt.pipelines.profile import setting

    console = stdout_console()
    names = report.sparse.name if _is_alone(report) else f"{report.sparse.name} against {_dense_name(report)}"
    console.print(f"{names}, {report.precision}", markup=False)
    console.print(setting(report), markup=False, style="dim")
    for batch in report.batches:
        console.print()
        console.print(_table(batch))
        console.print(f"batch {batch.label}: {batch.sentence}", markup=False, style="bold", soft_wrap=True)
        for one in batch.contrasts:
            console.print(one.sentence, markup=False, soft_wrap=True)
    if report.layers is not None:
        console.print()
        console.print(_layers(report.layers))
        console.print(f"layers: {report.layers.sentence}", markup=False, soft_wrap=True)
    if report.load is not None:
        console.print()
        console.print(_load(report.load))
        console.print(report.load.sentence, markup=False, soft_wrap=True)
    console.print()
    for remark in report.remarks():
        console.print(remark, markup=False, style="yellow", soft_wrap=True)
    console.print(report.headline, markup=False, style="bold", soft_wrap=True)
    console.print(report.runner.note, markup=False, soft_wrap=True)
    console.print(f"report: {output / 'report.html'}", markup=False, soft_wrap=True)


def _is_alone(report: ReportDocument) -> bool:
    """Whether the report is of one run of trtexec, compared with nothing."""
    return report.sparse.kind == "trtexec" and report.sparse == report.dense


def _dense_name(report: ReportDocument) -> str:
    from nm2trt.artifacts.report import has_zeros

    if report.dense.kind == "filled" and not has_zeros(report.sparse):
        return "itself: it has no zeros that could be filled"
    if report.dense.kind == "filled":
        return "itself with the pruned weights filled (timing only)"
    if report.batches and report.batches[0].baseline == "control":
        return "itself without sparse kernels"
    return report.dense.name


def _new(title: str, columns: tuple[str, ...], texts: int) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for index, heading in enumerate(columns):
        table.add_column(heading, justify="left" if index < texts else "right", overflow="fold")
    return table


def _table(batch: BatchRecord) -> Table:
    from nm2trt.pipelines.profile import VARIANT_COLUMNS, variant_cells

    table = _new(f"batch {batch.label}", VARIANT_COLUMNS, 1)
    for variant in batch.variants:
        table.add_row(*variant_cells(variant))
    return table


def _layers(layers: LayersRecord) -> Table:
    from rich.markup import escape

    longest = sorted(layers.layers, key=lambda row: -(row.sparse_ms or row.dense_ms or 0.0))[:_MOST_LAYERS]
    title = f"layers, batch {layers.batch}"
    if len(longest) < len(layers.layers):
        title += f", the longest {len(longest)} of {len(layers.layers)}"
    table = _new(title, ("layer", "kernel", "why not faster", "dense ms", "sparse ms", "ratio", "share"), 3)
    kernels = {True: "sparse", False: "dense", None: "?"}
    for row in longest:
        table.add_row(
            escape(row.name if len(row.name) <= 40 else f"…{row.name[-39:]}"),
            kernels[row.chosen] if row.weighted and row.sparse_ms is not None else "",
            escape(row.reasons[0]) if row.reasons else "",
            f"{row.dense_ms:.4g}" if row.dense_ms is not None else "",
            f"{row.sparse_ms:.4g}" if row.sparse_ms is not None else "",
            f"{row.ratio.value:.2f}x" if row.ratio is not None else "",
            f"{100 * row.share:.1f} %",
        )
    return table


def _load(load: LoadRecord) -> Table:
    columns = ("variant", "queue", "due/s", "done/s", "median ms", "p99 ms", "waiting")
    table = _new(f"under load, {load.streams} streams, batch {load.batch}", columns, 2)
    for one in load.points:
        table.add_row(
            one.variant,
            "grows" if one.saturated else "holds",
            f"{one.rate_per_s:.4g}",
            f"{one.achieved_per_s:.4g}",
            f"{one.median_ms:.4g}",
            f"{one.p99_ms:.4g}",
            f"{100 * one.waiting_share:.0f} %",
        )
    return table
