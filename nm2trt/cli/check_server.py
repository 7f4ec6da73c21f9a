"""`nm2trt check-server`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from nm2trt.cli.common import (
    force_option,
    json_option,
    output_option,
    say_threads,
    stderr_console,
    stdout_console,
    threads_option,
)

if TYPE_CHECKING:
    from nm2trt.artifacts.server_report import OutputsRecord, ServerReportDocument


@click.command(name="check-server")
@click.argument("url")
@click.argument("model")
@click.option("--build", type=click.Path(path_type=Path), required=True, metavar="BUILD", help="What it should serve.")
@click.option(
    "--arm",
    type=click.Choice(["sparse", "control", "dense"]),
    default="sparse",
    show_default=True,
    help="Of the build.",
)
@click.option("--grpc", metavar="HOST:PORT", help="gRPC address. Default: URL's host, and the port after its port.")
@click.option("--version", metavar="N", default="", help="Which version to ask. Default: the server's choice.")
@click.option(
    "--protocol",
    type=click.Choice(["both", "http", "grpc"]),
    default="both",
    show_default=True,
    help="Which to check and to load.",
)
@click.option(
    "--tolerance", type=click.FloatRange(min=0, min_open=True), metavar="X", help="As `nm2trt export` has it."
)
@click.option("--load/--no-load", default=True, show_default=True, help="Measure latency at rising concurrency.")
@click.option(
    "--duration",
    "duration_s",
    type=click.FloatRange(0.05, 600),
    default=2.0,
    show_default=True,
    metavar="S",
    help="Seconds per level of concurrency.",
)
@click.option("--max-concurrency", type=click.IntRange(1, 1024), default=64, show_default=True, metavar="N")
@click.option("--data-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where the data set's files are.")
@output_option("REPORT", "Folder to write: server.json, server.html.", required=False)
@force_option
@threads_option()
@json_option
def command(build: Path, output: Path | None, force: bool, as_json: bool, **options: Any) -> int:
    """Check that a running server serves a build: description, outputs, load.

    URL is the server's HTTP address, such as http://127.0.0.1:8000. Speaks the KServe v2 protocol over HTTP and gRPC;
    outputs are compared with ONNX Runtime's on the build's own samples, in the load test too.

    \b
    Exit 1: the description differs, an output differs, or a request failed. Exit 3: the server is not ready.
    """
    from nm2trt.artifacts.files import check_output, staged_folder
    from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK
    from nm2trt.serve.check import CheckConfig, check_server

    if output is not None:
        check_output(output, force=force)
    protocols: dict[str, tuple[Literal["http", "grpc"], ...]] = {"http": ("http",), "grpc": ("grpc",)}
    config = CheckConfig(build=build, protocols=protocols.get(options.pop("protocol"), ("http", "grpc")), **options)
    say_threads()
    console = stderr_console()
    if console.is_terminal:
        with console.status("asking the server") as status:
            report = check_server(config, status.update)
    else:
        report = check_server(config)
    if output is not None:
        from nm2trt.report.server_page import server_page

        with staged_folder(output, force=force) as folder:
            report.write(folder)
            (folder / "server.html").write_text(server_page(report), encoding="utf-8")
    if as_json:
        click.echo(report.to_json(), nl=False)
    else:
        _show(report, output)
    if report.problems:
        more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
        click.echo(f"nm2trt: error: {report.problems[0]}{more}", err=True)
    return EXIT_OK if report.verdict == "pass" else EXIT_BAD_VERDICT


def _error(result: OutputsRecord) -> str:
    if result.max_abs_error == 0:
        return "not a bit differs"
    share = f"{result.max_rel_error:.2e} of the largest output, bound {result.tolerance:.0e}"
    return f"largest error {result.max_abs_error:.2e} ({share})"


def _show(report: ServerReportDocument, output: Path | None) -> None:
    from rich import box
    from rich.table import Table

    from nm2trt.report.server_page import LOAD_COLUMNS, load_cells

    console = stdout_console()
    for one in report.metadata:
        state = "differs" if one.differences else "agrees with the build"
        console.print(
            f"{one.protocol}: {one.server}, {one.platform or 'no platform'}; its description {state}", markup=False
        )
    for result in report.outputs:
        state = "agree with" if result.passed else "differ from"
        console.print(
            f"{result.protocol}: outputs {state} ONNX Runtime's; {_error(result)}, {result.inputs}, "
            f"batch {', '.join(map(str, result.batches))}",
            markup=False,
            soft_wrap=True,
        )
    for end in report.saturation:
        table = Table(box=box.SIMPLE_HEAD, title=f"load over {end.protocol}", title_justify="left")
        for heading in LOAD_COLUMNS:
            table.add_column(heading, justify="right")
        for record in report.load:
            if record.protocol == end.protocol:
                table.add_row(*load_cells(record))
        console.print()
        console.print(table)
        console.print(f"{end.protocol}: {end.sentence}", markup=False, style="bold", soft_wrap=True)
    console.print()
    console.print(f"verdict: {report.verdict}", style="bold")
    if report.problems and not report.load:
        console.print("no load was measured: the answers are wrong already", style="dim")
    if output is not None:
        console.print(f"report: {output / 'server.html'}", markup=False, soft_wrap=True)
