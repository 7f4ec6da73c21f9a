"""`--json`: exactly one document on stdout, whatever a library below prints there.

TensorRT's logger writes to C++'s stdout and ONNX Runtime's Python code prints to Python's, so the promise is held at
the file descriptor: while a command with `--json` runs, descriptor 1 and `sys.stdout` are stderr, and only `print_json`
reaches what they were.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_emit: Callable[[str], None] | None = None


def json_option(command: F) -> F:
    """Add `--json`."""
    option = click.option(
        "--json",
        "as_json",
        is_flag=True,
        callback=_hold_if_asked,
        help="Print one JSON document on stdout, and nothing else there.",
    )
    return option(command)


def print_json(text: str) -> None:
    """Print the command's one JSON document; also past `hold_stdout`."""
    line = text if text.endswith("\n") else f"{text}\n"
    if _emit is None:
        click.echo(line, nl=False)
    else:
        _emit(line)


def hold_stdout(context: click.Context) -> None:
    """Send everything but `print_json` to stderr until the command ends."""
    global _emit
    if _emit is not None:
        return
    kept = sys.stdout
    kept.flush()
    descriptor = _descriptor_of(kept)
    if descriptor is None:
        # Some caller's own stream, as in tests: nothing below Python can write to it.
        _emit = kept.write  # type: ignore[assignment]
        saved = None
    else:
        saved = os.dup(descriptor)
        os.dup2(sys.stderr.fileno(), descriptor)
        _emit = _writer(saved)
    sys.stdout = sys.stderr

    def release() -> None:
        global _emit
        _emit = None
        sys.stdout = kept
        if saved is not None and descriptor is not None:
            os.dup2(saved, descriptor)
            os.close(saved)

    context.call_on_close(release)


def _hold_if_asked(context: click.Context, _option: click.Parameter, asked: bool) -> bool:
    if asked:
        hold_stdout(context)
    return asked


def _descriptor_of(stream: Any) -> int | None:
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return int(stream.fileno())
    return None


def _writer(descriptor: int) -> Callable[[str], None]:
    def write(text: str) -> None:
        data = text.encode("utf-8")
        # A reader that goes away changes no verdict.
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(descriptor, data) :]

    return write
