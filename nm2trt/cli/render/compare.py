"""Two reports, or an estimate and a report, on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nm2trt.cli.common import stdout_console

if TYPE_CHECKING:
    from rich.table import Table

    from nm2trt.pipelines.compare import ComparisonDocument, EstimateComparisonDocument, Pair

_MOST_LAYERS = 12
_SAYS = {"inside": "in the range", "above": "above the range", "below": "below the range"}
_DIFFERS = {
    "gpu": "GPU",
    "precision": "precision",
    "backend": "backend",
    "pattern": "pattern",
}


def print_comparison(found: ComparisonDocument | EstimateComparisonDocument) -> None:
    """Print what `nm2trt compare` found."""
    from nm2trt.pipelines.compare import EstimateComparisonDocument

    if isinstance(found, EstimateComparisonDocument):
        click.echo("\n".join(estimate_lines(found)))
    else:
        _print_reports(found)


def _print_reports(comparison: ComparisonDocument) -> None:
    console = stdout_console()
    console.print(f"A  {comparison.first}", markup=False, soft_wrap=True)
    console.print(f"B  {comparison.second}", markup=False, soft_wrap=True)
    if comparison.differences:
        console.print(_differences(comparison))
    if comparison.batches:
        console.print(_batches(comparison))
    if comparison.layers:
        console.print(_layers(comparison))
    for note in comparison.notes:
        console.print(note, markup=False, style="yellow", soft_wrap=True)
    console.print(comparison.sentence, markup=False, style="bold", soft_wrap=True)


def _new(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")


def _differences(comparison: ComparisonDocument) -> Table:
    table = _new("what differs")
    for heading in ("", "A", "B"):
        table.add_column(heading, overflow="fold")
    for one in comparison.differences:
        table.add_row(one.what, one.first, one.second)
    return table


def _batches(comparison: ComparisonDocument) -> Table:
    table = _new("baseline / sparse")
    for heading in ("batch", "A", "B", "sparse ms A", "sparse ms B", "finding"):
        table.add_column(heading, justify="left" if heading == "finding" else "right")
    for row in comparison.batches:
        table.add_row(str(row.batch), row.first, row.second, f"{row.first_ms:.4g}", f"{row.second_ms:.4g}", row.finding)
    return table


def _layers(comparison: ComparisonDocument) -> Table:
    table = _new("layers that differ most, sparse variant")
    for heading in ("layer", "A ms", "B ms", "A / B", "kernel A", "kernel B"):
        table.add_column(heading, justify="left" if heading in ("layer", "kernel A", "kernel B") else "right")
    for layer in comparison.layers:
        table.add_row(
            layer.name,
            f"{layer.first_ms:.4g}",
            f"{layer.second_ms:.4g}",
            f"{layer.ratio:.2f}x",
            layer.first_kernel,
            layer.second_kernel,
        )
    return table


def estimate_lines(found: EstimateComparisonDocument) -> list[str]:
    """An estimate beside a report, for people."""
    from nm2trt.cli.render.estimate import aligned, plain

    lines = [
        f"estimate  {plain(found.estimate)}, {plain(found.gpu)}",
        f"report    {plain(found.report)}, {plain(found.device)}",
    ]
    lines += [
        f"differs   {_DIFFERS[one.what]}: estimated for {plain(one.estimated)}, measured on {plain(one.measured)}"
        for one in found.mismatches
    ]
    columns = ("estimated", "range", "measured", "off", "")
    if found.totals:
        totals = [("", *columns), *((one.what.replace("_", " "), *_cells(one)) for one in found.totals)]
        lines += ["", *aligned(totals, ("",))]
    if found.layers:
        worst = sorted(found.layers, key=lambda one: -abs(one.dense.off * one.dense.measured))[:_MOST_LAYERS]
        head = ("layer, dense us", *columns, "sparse kernel")
        rows = [(plain(one.name), *_cells(one.dense), _kernel(one.expected, one.chosen)) for one in worst]
        lines += ["", *aligned([head, *rows], ("layer, dense us", "", "sparse kernel"))]
    return [*lines, "", *_summary(found)]


def _cells(one: Pair) -> tuple[str, ...]:
    value = one.estimated
    return (
        f"{value.value:.4g}",
        f"{value.low:.4g}-{value.high:.4g}",
        f"{one.measured:.4g}",
        f"{100 * one.off:+.0f} %",
        _SAYS[one.finding],
    )


def _kernel(expected: bool, chosen: bool | None) -> str:
    said = "expected" if expected else "not expected"
    return said if chosen is None else f"{said}, {'ran' if chosen else 'did not run'}"


def _summary(found: EstimateComparisonDocument) -> list[str]:
    lines = []
    for what, pairs in (
        ("dense times of layers", [one.dense for one in found.layers]),
        ("sparse kernels' times", [one.sparse for one in found.layers if one.sparse is not None]),
    ):
        if pairs:
            inside = sum(one.finding == "inside" for one in pairs)
            median = sorted(abs(one.off) for one in pairs)[len(pairs) // 2]
            lines.append(f"{what}: {inside} of {len(pairs)} in the range, off by {100 * median:.0f} % in the median")
    seen = [one for one in found.layers if one.chosen is not None]
    if seen:
        right = sum(one.expected == one.chosen for one in seen)
        lines.append(f"sparse kernel expected or not: right for {right} of {len(seen)} layers")
    if found.unmatched:
        lines.append(f"{len(found.unmatched)} layers of the estimate are not in the report by name")
    if found.mismatches:
        lines.append("the two do not describe the same run (differs, above): the errors are not the estimate's alone")
    return lines or ["nothing but the batch size is shared"]
