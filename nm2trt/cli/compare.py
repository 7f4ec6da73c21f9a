"""`nm2trt compare`: two reports side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nm2trt.cli.common import stdout_console
from nm2trt.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from nm2trt.profile.comparison import ComparisonDocument

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("first", metavar="REPORT_A", type=_PATH)
@click.argument("second", metavar="REPORT_B", type=_PATH)
@json_option
def command(first: Path, second: Path, as_json: bool) -> int:
    """Set two reports of `nm2trt profile` side by side.

    Both are folders (or their report.json). The ratio dense/sparse of one report can be held against the other's: it
    was measured in turns. Times of two reports were not, so their quotients are no finding and carry no verdict.
    """
    from nm2trt.profile.comparison import compare_reports

    comparison = compare_reports(first, second)
    if as_json:
        print_json(comparison.to_json())
    else:
        _show(comparison)
    return 0


def _show(comparison: ComparisonDocument) -> None:
    from rich import box
    from rich.table import Table

    console = stdout_console()
    console.print(f"A  {comparison.first}", markup=False, soft_wrap=True)
    console.print(f"B  {comparison.second}", markup=False, soft_wrap=True)
    if comparison.differences:
        table = Table(box=box.SIMPLE_HEAD, title="what differs", title_justify="left")
        for heading in ("", "A", "B"):
            table.add_column(heading, overflow="fold")
        for one in comparison.differences:
            table.add_row(one.what, one.first, one.second)
        console.print(table)
    table = Table(box=box.SIMPLE_HEAD, title="baseline / sparse", title_justify="left")
    for heading in ("batch", "A", "B", "sparse ms A", "sparse ms B", "finding"):
        table.add_column(heading, justify="left" if heading == "finding" else "right")
    for row in comparison.batches:
        table.add_row(str(row.batch), row.first, row.second, f"{row.first_ms:.4g}", f"{row.second_ms:.4g}", row.finding)
    if comparison.batches:
        console.print(table)
    if comparison.layers:
        table = Table(box=box.SIMPLE_HEAD, title="layers that differ most, sparse arm", title_justify="left")
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
        console.print(table)
    for note in comparison.notes:
        console.print(note, markup=False, style="yellow", soft_wrap=True)
    console.print(comparison.sentence, markup=False, style="bold", soft_wrap=True)
