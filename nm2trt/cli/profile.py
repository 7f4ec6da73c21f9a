"""`nm2trt profile`: dense against sparse, timed on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nm2trt.cli.common import force_option, json_option, output_option, stderr_console, stdout_console

if TYPE_CHECKING:
    from rich.table import Table

    from nm2trt.artifacts import BatchRecord, ReportDocument


@click.command()
@click.argument("source", metavar="BUILD_OR_ONNX", type=click.Path(path_type=Path))
@click.option(
    "--dense",
    metavar="BUILD_OR_ONNX",
    type=click.Path(path_type=Path),
    help="The dense-trained network: same graph, same precision. Without it, the sparse network's zeros are filled.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "onnxruntime", "tensorrt"]),
    default="auto",
    show_default=True,
    help="What runs the networks.",
)
@click.option("--batch", "batches", metavar="N,N,..", default="1,8,32", show_default=True, help="Batch sizes.")
@click.option(
    "--duration", "duration_s", metavar="S", type=float, default=6.0, show_default=True, help="Seconds per batch size."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of inputs, order of the runs, and statistics.")
@output_option("REPORT", "Folder to write: report.json, report.html.")
@force_option
@json_option
def command(
    source: Path,
    dense: Path | None,
    backend: str,
    batches: str,
    duration_s: float,
    seed: int,
    output: Path,
    force: bool,
    as_json: bool,
) -> int:
    """Time a sparse-trained network against a dense one.

    Three arms run in turns, in shuffled order: dense, sparse, and sparse once more. The third is the noise
    floor: a difference counts only where it is larger than the difference of a network to itself.

    BUILD_OR_ONNX is a folder of `nm2trt export` or an ONNX file.
    """
    from nm2trt.artifacts.files import check_output, staged_folder
    from nm2trt.profile.config import profile_config

    config = profile_config(backend=backend, batches=batches, duration_s=duration_s, seed=seed)
    check_output(output, force=force)

    from nm2trt.profile import choose_backend, profile
    from nm2trt.report.profile_page import profile_page

    notes = stderr_console()
    _, choice = choose_backend(config.backend)
    notes.print(f"backend: {choice}", style="dim", markup=False, soft_wrap=True)
    with _Progress(len(config.batches)) as progress:
        report = profile(source, config, dense=dense, progress=progress.update)
    with staged_folder(output, force=force) as folder:
        report.write(folder)
        (folder / "report.html").write_text(profile_page(report), encoding="utf-8")
    if as_json:
        click.echo(report.to_json(), nl=False)
    else:
        _show(report, output)
    return 0


class _Progress:
    """A bar over all batch sizes, on a terminal only."""

    def __init__(self, total: int) -> None:
        from rich.progress import Progress, TimeElapsedColumn

        console = stderr_console()
        columns = (*Progress.get_default_columns(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("measuring", total=total)
        self._what = ""
        self._done = -1

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.stop()

    def update(self, what: str, share: float) -> None:
        if what != self._what:
            self._what = what
            self._done += 1
        self._bar.update(self._task, completed=self._done + share, description=what)


def _show(report: ReportDocument, output: Path) -> None:
    console = stdout_console()
    console.print(f"{report.sparse.name} against {_dense_name(report)}, {report.precision}", markup=False)
    console.print(
        f"ONNX Runtime {report.runner.version}, {report.runner.provider}, {report.runner.threads} threads",
        markup=False,
        style="dim",
    )
    for batch in report.batches:
        console.print()
        console.print(_table(batch))
        console.print(f"batch {batch.batch}: {batch.sentence}", markup=False, style="bold", soft_wrap=True)
    console.print()
    for remark in report.remarks():
        console.print(remark, markup=False, style="yellow", soft_wrap=True)
    console.print(report.headline, markup=False, style="bold", soft_wrap=True)
    console.print(report.runner.note, markup=False, soft_wrap=True)
    console.print(f"report: {output / 'report.html'}", markup=False, soft_wrap=True)


def _dense_name(report: ReportDocument) -> str:
    if report.dense.kind == "filled":
        return "itself with the pruned weights filled (timing only)"
    return report.dense.name


def _table(batch: BatchRecord) -> Table:
    from rich import box
    from rich.table import Table

    from nm2trt.report.latency_section import ARM_COLUMNS, arm_cells

    table = Table(box=box.SIMPLE_HEAD, title=f"batch {batch.batch}", title_justify="left")
    name, *figures = ARM_COLUMNS
    table.add_column(name)
    for heading in figures:
        table.add_column(heading, justify="right")
    for arm in batch.arms:
        table.add_row(*arm_cells(arm))
    return table
