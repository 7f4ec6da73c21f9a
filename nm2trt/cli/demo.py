"""`nm2trt demo`."""

from __future__ import annotations

from pathlib import Path

import click

from nm2trt.cli.common import force_option, output_option, stderr_console, threads_option
from nm2trt.cli.json_output import json_option, print_json
from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK


@click.command(name="demo")
@click.option("--data", default="digits", show_default=True, metavar="NAME", help="Data set.")
@click.option("--data-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where the data's files are.")
@click.option("--model", default="resnet8", show_default=True, metavar="NAME", help="Network.")
@click.option("--pattern", default="2:4", show_default=True, metavar="N:M", help="Pattern of the sparse networks.")
@click.option("--epochs", default=30, show_default=True, metavar="N", help="Epochs of every training run.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 20), help="Runs of each method.")
@click.option("--duration", default=4.0, show_default=True, metavar="S", help="Seconds of timing per batch size.")
@output_option("DIR", "Folder for everything.", required=False, default=Path("nm2trt-demo"))
@force_option
@threads_option()
@json_option
def command(
    output: Path, *, seeds: int, duration: float, force: bool, as_json: bool, **options: str | int | Path | None
) -> int:
    """Go end to end on bundled data: train, verify, export, compile, profile, report.

    Trains dense and SR-STE networks from the same seeds, checks and exports them, compiles engines where
    TensorRT or TensorRT-RTX is installed, times dense against sparse, and writes DIR/report.html.
    Every step is a command of its own; the report lists them.
    """
    from nm2trt.pipelines.demo import demo_settings, run_demo

    settings = demo_settings(output, options, seeds=seeds, duration_s=duration, force=force)
    notes = stderr_console()
    if notes.is_terminal:
        with notes.status("starting") as status:
            document = run_demo(settings, output, force=force, say=notes.print, doing=status.update)
    else:
        document = run_demo(settings, output, force=force, say=lambda line: click.echo(line, err=True))
    if as_json:
        print_json(document.to_json())
    else:
        from nm2trt.cli.render.demo import print_demo

        print_demo(document, output)
    for problem in document.problems:
        click.echo(f"nm2trt: error: {problem}", err=True)
    return EXIT_BAD_VERDICT if document.problems else EXIT_OK
