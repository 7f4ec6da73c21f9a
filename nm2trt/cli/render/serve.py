"""A running server on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nm2trt.cli.common import stderr_console

if TYPE_CHECKING:
    from nm2trt.pipelines.serve import NoteKind, ServedRepository

_STYLES: dict[NoteKind, str | None] = {"detail": "dim", "note": None, "warning": "yellow"}


def print_note(text: str, kind: NoteKind) -> None:
    """Say on stderr what goes on."""
    stderr_console().print(text, style=_STYLES[kind], markup=False, soft_wrap=True)


def print_addresses(served: ServedRepository) -> None:
    """Print models, versions and addresses."""
    for name, versions in served.models.items():
        click.echo(f"{name}: version {', '.join(map(str, versions))}")
    click.echo(f"metrics: {served.metrics}")
    click.echo(f"ready: {served.http}  gRPC {served.grpc}")
