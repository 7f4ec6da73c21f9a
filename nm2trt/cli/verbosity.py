"""`-v` and `-q`: how much is said on stderr.

Modules log through `logging.getLogger(__name__)`: notes at INFO, details at DEBUG. Nothing is configured before a
command line is run, so that a program that imports nm2trt keeps its own logging.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import click

_LOGGER = logging.getLogger("nm2trt")


class _StderrHandler(logging.Handler):
    """Writes to what `sys.stderr` is when a record comes."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


class _Format(logging.Formatter):
    """A note as it is; anything else with its level and module."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {record.name}: {text}"


def set_verbosity(level: int = logging.INFO) -> None:
    """Say what is of this level or above on stderr."""
    if not any(isinstance(handler, _StderrHandler) for handler in _LOGGER.handlers):
        handler = _StderrHandler()
        handler.setFormatter(_Format())
        _LOGGER.addHandler(handler)
    _LOGGER.setLevel(level)


def is_quiet() -> bool:
    """Whether `-q` was given: no progress, no notes."""
    return _LOGGER.level > logging.INFO


def is_verbose() -> bool:
    """Whether `-v` was given: details are logged instead of a line that moves."""
    return 0 < _LOGGER.level < logging.INFO


def verbosity_options() -> list[click.Option]:
    """`-v` and `-q`, for the group and for every command."""

    def setter(level: int) -> Callable[[click.Context, click.Parameter, bool], None]:
        def change(_context: click.Context, _option: click.Parameter, given: bool) -> None:
            if given:
                set_verbosity(level)

        return change

    return [
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=setter(logging.DEBUG),
            help="Log details on stderr.",
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=setter(logging.ERROR),
            help="No progress and no notes on stderr, only errors.",
        ),
    ]
