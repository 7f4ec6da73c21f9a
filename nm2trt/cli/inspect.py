"""`nm2trt inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nm2trt.cli.json_output import json_option, print_json

_FILE = click.Path(path_type=Path)


@click.command(name="inspect")
@click.argument("build", type=_FILE, metavar="[BUILD | FILE]", required=False)
@click.option(
    "--layers", type=_FILE, metavar="F.json", help="Engine inspector's or trtexec --exportLayerInfo's output."
)
@click.option("--log", type=_FILE, metavar="F.log", help="Build log of TensorRT, trtexec or polygraphy.")
@click.option("--onnx", type=_FILE, metavar="M.onnx", help="The network, to name nodes and weights and judge patterns.")
@click.option(
    "--variant", metavar="VARIANT", help="Table of this engine only: dense, control, sparse. Default: sparse."
)
@click.option("--all-layers", is_flag=True, help="Also list layers that have no weights.")
@click.option(
    "--require", "least", type=click.IntRange(min=0), metavar="N", help="Exit 1 unless N layers run a sparse kernel."
)
@json_option
def command(build: Path | None, *, all_layers: bool, least: int | None, as_json: bool, **files: Any) -> int:
    """Show of each engine layer whether it may be sparse, whether it is, and which kernel runs.

    Takes a folder of `nm2trt export`, or the output of others' builds: one FILE, or --layers, --log or both. What a
    file is, its content decides. No plan is loaded and no GPU is needed. Sparse is what the kernel's name or the
    builder's (Sparsity) log lines show; the inspector's HasSparseWeights tells of the weights alone and proves nothing.

    \b
    Exit 1: with --require N, fewer layers of the (sparse) engine run a sparse kernel.
    """
    from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK
    from nm2trt.pipelines.inspect import InspectConfig, choose_engines, inspect_build

    config = InspectConfig(**files)
    document = inspect_build(build, config)
    shown = choose_engines(document, config.variant)
    if as_json:
        print_json(document.to_json())
    else:
        from nm2trt.cli.render.inspect import print_engine

        for engine in shown:
            print_engine(engine, all_layers=all_layers)
    short = [engine for engine in shown if least is not None and engine.sparse_at_least < least]
    for engine in short:
        found = f"{engine.sparse_at_least} layers run a sparse kernel, and --require asks for {least}"
        click.echo(f"nm2trt: error: {engine.name}: {found}", err=True)
    return EXIT_BAD_VERDICT if short else EXIT_OK
