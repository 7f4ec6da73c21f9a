"""The demo's closing table for people."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from nm2trt.artifacts import DemoDocument
from nm2trt.cli.common import stdout_console


def print_demo(document: DemoDocument, output: Path) -> None:
    """Print the closing table, the four facts, and where the report is."""
    console = stdout_console()
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in document.rows:
        table.add_row(row.what, row.value, row.detail.replace("[", r"\["))
    console.print(table)
    console.print()
    for name, state, evidence in document.facts.rows():
        console.print(f"{name:9} {state:10} {evidence}", markup=False, soft_wrap=True)
    console.print()
    console.print(f"{document.seconds:.0f} s in all. Open {output / 'report.html'}", markup=False, soft_wrap=True)
