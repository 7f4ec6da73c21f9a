"""`nm2trt refit`."""

from __future__ import annotations

from pathlib import Path

import click

from nm2trt.cli.common import stderr_console
from nm2trt.cli.json_output import json_option, print_json


@click.command(name="refit")
@click.argument("build", type=click.Path(path_type=Path), metavar="BUILD")
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="CHECKPOINT")
@click.option(
    "--trust",
    is_flag=True,
    help="Load plans whose sha256 is not that of build.json, and import code that a file names: you made them.",
)
@json_option
def command(build: Path, checkpoint: Path, trust: bool, as_json: bool) -> int:
    """Refit the engines of BUILD with new weights, without building them again.

    CHECKPOINT is what `nm2trt export` takes, or an ONNX file that was exported like BUILD's. It is exported as BUILD
    was and checked first: weights that break the pattern, or that belong to another network, are refused before an
    engine is touched. The control and sparse engines get the new weights, and BUILD is replaced as a whole.

    Needs TensorRT, its GPU, and engines of `nm2trt export --builder tensorrt --refittable`.

    \b
    Exit 1: the outputs of the new network differ from torch's by more than the tolerance.
    """
    from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK
    from nm2trt.pipelines.refit import refit_build

    console = stderr_console()
    if console.is_terminal:
        with console.status("refitting"):
            document = refit_build(build, checkpoint, trust=trust)
    else:
        document = refit_build(build, checkpoint, trust=trust)
    if as_json:
        print_json(document.to_json())
    else:
        variants = ", ".join(engine.variant for engine in document.engines if engine.variant != "dense")
        click.echo(f"{build}: {variants} hold the weights of {checkpoint}; {document.facts.legal.evidence}")
        click.echo("no time was measured with them: run `nm2trt profile` again")
    return EXIT_OK if document.verdict == "pass" else EXIT_BAD_VERDICT
