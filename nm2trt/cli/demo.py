"""`nm2trt demo`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nm2trt.cli.common import force_option, output_option, stderr_console, stdout_console, threads_option
from nm2trt.cli.json_output import json_option, print_json
from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK

if TYPE_CHECKING:
    from nm2trt.artifacts import DemoDocument
    from nm2trt.pipelines.demo import DemoSettings

Say = Callable[[str], object]


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
    data: str,
    data_dir: Path | None,
    model: str,
    pattern: str,
    epochs: int,
    seeds: int,
    duration: float,
    output: Path,
    force: bool,
    as_json: bool,
) -> int:
    """Go end to end on bundled data: train, verify, export, compile, profile, report.

    Trains dense and SR-STE networks from the same seeds, checks and exports them, compiles engines where
    TensorRT or TensorRT-RTX is installed, times dense against sparse, and writes DIR/report.html.
    Every step is a command of its own; the report lists them.
    """
    from nm2trt.artifacts.files import check_output
    from nm2trt.training.config import load_config

    check_output(output, force=force)
    options = {"data": data, "data_dir": data_dir, "model": model, "pattern": pattern, "epochs": epochs}
    if epochs == 1:
        options["warmup_epochs"] = 0
    config = load_config(None, {name: value for name, value in options.items() if value is not None})
    from nm2trt.pipelines.demo import DemoSettings

    settings = DemoSettings(config=config, seeds=seeds, duration_s=duration)
    notes = stderr_console()
    if notes.is_terminal:
        with notes.status("starting") as status:
            document = _demo(settings, output, force=force, say=notes.print, doing=status.update)
    else:
        document = _demo(settings, output, force=force, say=lambda line: click.echo(line, err=True))
    if as_json:
        print_json(document.to_json())
    else:
        _print(document, output)
    for problem in document.problems:
        click.echo(f"nm2trt: error: {problem}", err=True)
    return EXIT_BAD_VERDICT if document.problems else EXIT_OK


def _demo(settings: DemoSettings, output: Path, *, force: bool, say: Say, doing: Say = lambda _: None) -> DemoDocument:
    """Run all stages into `output`, which appears whole at the end or not at all."""
    from nm2trt.artifacts import DemoDocument, file_records, host_record, staged_folder, write_atomic
    from nm2trt.pipelines import demo_report as demo_page
    from nm2trt.pipelines.demo import commands, run_stages

    started = time.perf_counter()
    with staged_folder(output, force=force) as folder:
        stages = run_stages(settings, folder, say=say, doing=doing)
        write_atomic(folder / "report.html", demo_page.page(stages, folder))
        problems = demo_page.problems(stages)
        document = DemoDocument(
            data=settings.config.data,
            model=settings.config.model,
            pattern=settings.config.pattern,
            seeds=settings.seeds,
            score_name=stages.dense[0].result.score_name,
            dense_scores=tuple(run.result.test_score for run in stages.dense),
            sparse_scores=tuple(run.result.test_score for run in stages.sparse),
            rows=demo_page.rows(stages),
            facts=demo_page.facts(stages),
            commands=commands(settings),
            problems=problems,
            verdict="fail" if problems else "pass",
            seconds=time.perf_counter() - started,
            files=file_records(folder),
            host=host_record(),
        )
        document.write(folder)
    return document


def _print(document: DemoDocument, output: Path) -> None:
    from rich.table import Table

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
