"""`nm2trt serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nm2trt.cli.json_output import json_option, print_json


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
def command(repository: Path, *, as_json: bool, **options: Any) -> int:
    """Serve a model repository with the Triton that is installed here, on 127.0.0.1.

    Looks for tritonserver on PATH and for nvidia-pytriton's in build/triton; NM2TRT_TRITON names another. Prints the
    addresses when every model is ready, and stops in order on Ctrl-C or SIGTERM.
    """
    from nm2trt.cli.render.serve import print_addresses, print_note
    from nm2trt.errors import EXIT_OK
    from nm2trt.pipelines.serve import ServeConfig, serve_repository

    serve_repository(
        repository,
        ServeConfig(**options),
        on_ready=(lambda served: print_json(served.to_json())) if as_json else print_addresses,
        on_note=print_note,
    )
    return EXIT_OK
