"""A training run for people: its score, its layers, how its masks moved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nm2trt.threads import ThreadChoice

if TYPE_CHECKING:
    from nm2trt.pipelines.train import RunDocument


def print_run(document: RunDocument, output: Path) -> None:
    """Print the score, which weights are sparse, and what came of the masks."""
    sparse = [layer for layer in document.layers if layer.pattern]
    result = document.result
    click.echo(
        f"{document.model.name} on {document.data}, {document.method}: "
        f"test {result.score} "
        f"after {result.epochs} epochs ({result.steps} steps, {result.seconds:.1f} s on {document.device})"
    )
    if document.method != "dense":
        patterns = ", ".join(sorted({str(layer.pattern) for layer in sparse}))
        click.echo(f"{len(sparse)} of {len(document.layers)} weights are sparse: {patterns}")
        for layer in document.layers:
            if not layer.pattern:
                click.echo(f"  dense: {layer.name} {list(layer.shape)}: {layer.reason}")
    if document.threads is not None:
        click.echo(f"CPU: {ThreadChoice(**document.threads.model_dump())}")
    if len(document.sessions) > 1:
        click.echo(_sessions_line(document))
    if None in (result.test_loss, result.train_loss):
        click.echo("the last epoch's loss is no number; run.json has null there")
    if result.sad is not None:
        click.echo(
            f"SAD from the first mask to the last: {result.sad.from_start} bits "
            f"({result.sad.from_start_normalized:.3f} a weight); {result.sad.flips_per_weight:.2f} flips a weight"
        )
    click.echo(f"wrote {output}")
    if document.method != "dense":
        click.echo(f"next: nm2trt verify {output}")


def _sessions_line(document: RunDocument) -> str:
    """Say how near a resumed run comes to one that was left alone."""
    if document.repeats_to_the_byte:
        times = len(document.sessions) - 1
        count = f"{times} time{'s' if times > 1 else ''}"
        return f"resumed {count} by as many processes: on a CPU, as if never stopped, to the byte"
    counts = ", ".join(str(session.processes) for session in document.sessions)
    return f"trained by {counts} processes in turn: as if never stopped to rounding, not to the byte"
