"""A server's check on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nm2trt.cli.common import stdout_console

if TYPE_CHECKING:
    from rich.table import Table

    from nm2trt.pipelines.check_server import OutputsRecord, SaturationRecord, ServerReportDocument


def print_server_report(report: ServerReportDocument, output: Path | None) -> None:
    """Print descriptions, outputs, load, and the verdict."""
    console = stdout_console()
    for one in report.metadata:
        if not one.server:
            continue
        state = "differs" if one.differences else "agrees with the build"
        console.print(
            f"{one.protocol}: {one.server}, {one.platform or 'no platform'}; its description {state}", markup=False
        )
    for result in report.outputs:
        batches = ", ".join(map(str, result.batches))
        version = f", version {result.version}" if result.version else ""
        console.print(
            f"{result.protocol}: {_outcome(result)}, batch {batches}{version}",
            markup=False,
            soft_wrap=True,
        )
    for note in report.notes:
        console.print(f"note: {note}", markup=False, style="yellow", soft_wrap=True)
    for end in report.saturation:
        console.print()
        console.print(_load_table(report, end))
        console.print(f"{end.protocol}: {end.sentence}", markup=False, style="bold", soft_wrap=True)
    console.print()
    console.print(f"verdict: {report.verdict}", style="bold")
    if report.problems and not report.load:
        console.print("no load was measured: the check failed already", style="dim")
    if output is not None:
        console.print(f"report: {output / 'server.html'}", markup=False, soft_wrap=True)


def _load_table(report: ServerReportDocument, end: SaturationRecord) -> Table:
    from rich import box
    from rich.table import Table

    from nm2trt.pipelines.check_server import LOAD_COLUMNS, load_cells

    table = Table(box=box.SIMPLE_HEAD, title=f"load over {end.protocol}", title_justify="left")
    for heading in LOAD_COLUMNS:
        table.add_column(heading, justify="right")
    for record in report.load:
        if record.protocol == end.protocol:
            table.add_row(*load_cells(record))
    return table


def _error(result: OutputsRecord) -> str:
    if result.max_abs_error == 0:
        return "not a bit differs"
    share = f"{result.max_rel_error:.2e} of the largest output, bound {result.tolerance:.0e}"
    return f"largest error {result.max_abs_error:.2e} ({share})"


def _outcome(result: OutputsRecord) -> str:
    """One line on one protocol's answers."""
    if result.passed:
        return f"outputs agree with ONNX Runtime's; {_error(result)}, {result.inputs}"
    if not result.requests:
        return f"nothing was asked; {result.first_error}"
    if result.errors:
        return f"{result.errors} of {result.requests} requests failed; {result.first_error}"
    return f"outputs differ from ONNX Runtime's in {result.wrong} of {result.requests} answers; {result.worst_at}"
