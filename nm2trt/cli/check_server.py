"""`nm2trt check-server`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from nm2trt.cli.common import (
    force_option,
    output_option,
    say_threads,
    schema_option,
    threads_option,
)
from nm2trt.cli.json_output import json_option, print_json
from nm2trt.cli.render.status import show_status

if TYPE_CHECKING:
    from nm2trt.pipelines.check_server import CheckConfig, ServerReportDocument

_FILE = click.Path(path_type=Path, dir_okay=False)


def _document() -> type[ServerReportDocument]:
    from nm2trt.artifacts.server_report import ServerReportDocument

    return ServerReportDocument


@click.command(name="check-server")
@click.argument("url")
@click.argument("model")
@click.option("--build", type=click.Path(path_type=Path), required=True, metavar="BUILD", help="What it should serve.")
@click.option(
    "--variant",
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
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 3600),
    default=20.0,
    show_default=True,
    metavar="S",
    help="Seconds for one request.",
)
@click.option(
    "--samples",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="F.npz",
    help="Inputs to send: one array [samples, ...] for each input. Default: the build's own test samples, or noise and "
    "indices that cover every row of every embedding.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="INPUT=1x128",
    help="Values of an input's dynamic dimensions besides the batch; repeat it for several lengths.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where the data set's files are.")
@click.option(
    "--encoding",
    type=click.Choice(["binary", "json"]),
    default="binary",
    show_default=True,
    help="Tensors over HTTP: Triton's binary extension, or JSON numbers for servers without it.",
)
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="Sent with every request, over gRPC as metadata; @FILE reads them from a file. Host names the virtual host.",
)
@click.option("--ca-file", type=_FILE, metavar="PEM", help="Authorities for https and grpcs. Default: the system's.")
@click.option("--client-cert", type=_FILE, metavar="PEM", help="Our certificate.")
@click.option("--client-key", type=_FILE, metavar="PEM", help="Its key, where the certificate's file does not hold it.")
@click.option("--insecure", is_flag=True, help="Take any certificate over https.")
@click.option("--trust", is_flag=True, help="Import the data's code that BUILD names although it was not made here.")
@output_option("REPORT", "Folder to write: server.json, server.html.", required=False)
@schema_option(_document, "server.json")
@force_option
@threads_option()
@json_option
@click.pass_context
def command(
    context: click.Context, /, build: Path, *, output: Path | None, force: bool, as_json: bool, **options: Any
) -> int:
    """Check that a running server serves a build: description, outputs, load.

    URL is the server's HTTP address, such as http://127.0.0.1:8000, or https://HOST/PREFIX behind an ingress. Speaks
    the KServe v2 protocol over HTTP and gRPC; every answer is read to its last byte and compared with ONNX Runtime's,
    in the load test too.

    \b
    Exit 1: the description differs, an answer differs, cannot be read or did not come.
    Exit 3: nothing listens there, or server or model is not ready.
    """
    from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK
    from nm2trt.pipelines.check_server import check_server

    _refuse_idle_options(context, options, output=output)
    config = _config(build, options)
    say_threads()
    with show_status("asking the server") as progress:
        report = check_server(config, output, force=force, progress=progress)
    if as_json:
        print_json(report.to_json())
    else:
        from nm2trt.cli.render.check_server import print_server_report

        print_server_report(report, output)
    if report.problems:
        more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
        click.echo(f"nm2trt: error: {report.problems[0]}{more}", err=True)
    return EXIT_OK if report.verdict == "pass" else EXIT_BAD_VERDICT


def _config(build: Path, options: dict[str, Any]) -> CheckConfig:
    from nm2trt.pipelines.check_server import CheckConfig, Tls

    protocols: dict[str, tuple[Literal["http", "grpc"], ...]] = {"http": ("http",), "grpc": ("grpc",)}
    tls = Tls(
        ca_file=options.pop("ca_file"),
        cert_file=options.pop("client_cert"),
        key_file=options.pop("client_key"),
        insecure=options.pop("insecure"),
    )
    return CheckConfig(
        build=build,
        protocols=protocols.get(options.pop("protocol"), ("http", "grpc")),
        as_json=options.pop("encoding") == "json",
        tls=tls,
        **options,
    )


def _refuse_idle_options(context: click.Context, options: dict[str, Any], *, output: Path | None) -> None:
    """Name every option that was given and would do nothing, or lets everything pass.

    Raises:
        ConfigError: There is one.
    """
    from nm2trt.errors import ConfigError

    given = {
        name
        for name in (*options, "force")
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    rules = (
        (not options["load"], ("duration_s", "max_concurrency"), "with --no-load"),
        (options["protocol"] == "http", ("grpc",), "with --protocol http"),
        (options["protocol"] == "grpc", ("encoding", "insecure"), "with --protocol grpc"),
        (options["samples"] is not None, ("data_dir", "shapes"), "with --samples"),
        (options["ca_file"] is not None, ("insecure",), "with --ca-file"),
        (options["client_cert"] is None, ("client_key",), "without --client-cert"),
        (output is None, ("force",), "without -o"),
    )
    named = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for name in ("tolerance", "duration_s", "timeout_s"):
        # A range lets nan through, and everything is within an infinite tolerance.
        if options[name] is not None and not math.isfinite(options[name]):
            raise ConfigError(f"{options[name]} is no bound", where=named[name], hint="give a number")
    idle = [f"{named[name]} {why}" for applies, names, why in rules if applies for name in names if name in given]
    if idle:
        raise ConfigError(f"no effect: {'; '.join(idle)}", where="check-server", hint="drop it")
