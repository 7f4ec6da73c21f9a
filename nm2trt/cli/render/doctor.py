"""A machine on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nm2trt.cli.common import stdout_console

if TYPE_CHECKING:
    from nm2trt.pipelines.doctor import MachineReport


def print_machine(report: MachineReport) -> None:
    """Print what was found, and what can be proved here."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "found"):
        table.add_column(heading, overflow="fold")
    for finding in report.findings:
        sign = "[green]yes[/]" if finding.present else "[yellow]no[/]"
        detail = finding.detail + (f"\n-> {finding.hint}" if finding.hint else "")
        table.add_row(sign, finding.name, detail.replace("[", r"\["))
    stdout_console().print(table)
    click.echo("\nWhat can be proved here:")
    for fact, answer in report.abilities.items():
        click.echo(f"  {fact:22} {answer}")
