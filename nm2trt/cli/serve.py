"""`nm2trt serve`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nm2trt.cli.common import stderr_console
from nm2trt.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from nm2trt.serve.server import Server


@click.command(name="serve")
@click.argument("repository", metavar="REPOSITORY", type=click.Path(path_type=Path))
@click.option(
    "--http-port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free."
)
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=8001, show_default=True)
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=8002, show_default=True)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, 86400, min_open=True),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Until ready.",
)
@click.option(
    "--poll", "poll_s", type=click.IntRange(min=0), default=0, metavar="S", help="Load new versions every S seconds."
)
@click.option(
    "--restarts",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="How often a server that was killed is started again.",
)
@click.option(
    "--stand-in",
    is_flag=True,
    help="Where the server lacks the TensorRT or ONNX Runtime backend: run model.onnx on the CPU under the same "
    "configuration. Shows layout, configuration and protocol, never an engine.",
)
@click.option("--log", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Keep the server's log.")
@json_option
def command(
    repository: Path,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    timeout_s: float,
    poll_s: int,
    restarts: int,
    stand_in: bool,
    log: Path | None,
    as_json: bool,
) -> int:
    """Serve a model repository with the Triton that is installed here, on 127.0.0.1.

    Looks for tritonserver on PATH and for nvidia-pytriton's in build/triton; NM2TRT_TRITON names another. Prints the
    addresses when every model is ready, and stops in order on Ctrl-C or SIGTERM.
    """
    from nm2trt.errors import ConfigError
    from nm2trt.serve import check_repository
    from nm2trt.serve.installed import STAND_INS, find_triton
    from nm2trt.serve.server import choose_ports, start

    if not math.isfinite(timeout_s):
        # A range lets nan through.
        raise ConfigError(f"{timeout_s} is no time", where="--timeout", hint="give seconds")
    models = check_repository(repository)
    installed = find_triton()
    ports = choose_ports(http_port, grpc_port, metrics_port)
    needed = frozenset(backend for backend, _ in models.values())
    notes = stderr_console()
    notes.print(installed.description, style="dim", markup=False, soft_wrap=True)
    strangers = [name for name in models if not (repository / name / "package.json").is_file()]
    if strangers:
        text = f"{', '.join(map(repr, strangers))} was not packaged by nm2trt: its files are not checked"
        notes.print(text, style="yellow", markup=False, soft_wrap=True)
    stand_ins = frozenset(STAND_INS) if stand_in else frozenset[str]()
    replaced = sorted(set(installed.missing(needed)) & stand_ins)
    if stand_in and not replaced:
        raise ConfigError(
            f"no effect: {', '.join(sorted(needed))} runs by itself here", where="--stand-in", hint="drop it"
        )
    if replaced:
        text = f"stand-in for {', '.join(replaced)}: ONNX Runtime on the CPU runs model.onnx, not the engine"
        notes.print(text, style="yellow", markup=False, soft_wrap=True)
    return _serve(
        lambda: start(installed, repository, ports, needed=needed, stand_ins=stand_ins, poll_s=poll_s, log=log),
        models,
        restarts=restarts,
        timeout_s=timeout_s,
        as_json=as_json,
    )


def _serve(
    start_server: Callable[[], AbstractContextManager[Server]],
    models: dict[str, tuple[str, list[int]]],
    *,
    restarts: int,
    timeout_s: float,
    as_json: bool,
) -> int:
    """Serve until somebody stops it; a server that was killed is started again."""
    import contextlib

    notes = stderr_console()
    for attempt in range(restarts + 1):
        with start_server() as server:
            # Ctrl-C and SIGTERM (main makes it the same) end the block, which stops the server.
            with contextlib.suppress(KeyboardInterrupt):
                server.wait_until_ready(timeout_s)
                if attempt == 0:
                    _announce(server, models, as_json)
                else:
                    notes.print(f"ready again, process {server.pid}", markup=False)
                how = server.wait()
                if not server.killed():
                    raise server.failure(f"tritonserver {how}")
                left = (
                    f"starting it again ({attempt + 1} of {restarts})" if attempt < restarts else "no restarts are left"
                )
                notes.print(f"tritonserver {how}; {left}", style="yellow", markup=False, soft_wrap=True)
                if attempt == restarts:
                    raise server.failure(f"tritonserver {how}")
                continue
            notes.print("stopping", style="dim")
        break
    return 0


def _announce(server: Server, models: dict[str, tuple[str, list[int]]], as_json: bool) -> None:
    metrics = f"http://127.0.0.1:{server.ports.metrics}/metrics"
    if as_json:
        import json

        from nm2trt._version import __version__

        document = {
            "schema": "nm2trt.serve/1",
            "nm2trt_version": __version__,
            "http": server.http_url,
            "grpc": server.grpc_url,
            "metrics": metrics,
            "pid": server.pid,
            "models": {name: versions for name, (_, versions) in models.items()},
        }
        print_json(json.dumps(document, indent=2))
        return
    for name, (_, versions) in models.items():
        click.echo(f"{name}: version {', '.join(map(str, versions))}")
    click.echo(f"metrics: {metrics}")
    click.echo(f"ready: {server.http_url}  gRPC {server.grpc_url}")
