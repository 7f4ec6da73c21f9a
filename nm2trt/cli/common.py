"""Options and printing that the commands share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nm2trt.cli.verbosity import is_quiet

if TYPE_CHECKING:
    from rich.console import Console

    from nm2trt.artifacts import Document
    from nm2trt.pattern import NMPattern

logger = logging.getLogger(__name__)

_WIDTH_IN_FILES = 120

F = TypeVar("F", bound=Callable[..., Any])


def output_option(metavar: str, text: str, *, required: bool = True, default: Path | None = None) -> Callable[[F], F]:
    """`-o/--output`, a folder."""
    # Since click 8.3 a default of None is a value, with which a required option counts as given.
    given: dict[str, Any] = {} if default is None else {"default": default, "show_default": True}
    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        metavar=metavar,
        required=required,
        help=text,
        **given,
    )


def option_group(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Several arguments and options as one decorator; the command gathers their values with `**options`."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def given_options(context: click.Context) -> set[str]:
    """Names of the parameters that the user wrote."""
    usual = (click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP)
    return {name for name in context.params if context.get_parameter_source(name) not in usual}


force_option = click.option(
    "--force",
    is_flag=True,
    help="Replace the output folder, if nm2trt wrote it. Never touches other folders.",
)


def threads_option(*, sleep: bool = True) -> Callable[[F], F]:
    """`--threads`: settled while options are read, before anything that loads torch is imported.

    Args:
        sleep: Let idle threads sleep; off where torch's own behavior is what is measured.
    """

    def prepare(_context: click.Context, _option: click.Parameter, value: int | None) -> None:
        from nm2trt.threads import prepare_threads

        prepare_threads(value, sleep=sleep)

    return click.option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        callback=prepare,
        expose_value=False,
        help="CPU threads of torch and ONNX Runtime. Default: OMP_NUM_THREADS, else by the work at hand.",
    )


def say_threads() -> None:
    """Say on stderr how many CPU threads were chosen, and by whom."""
    from nm2trt.threads import choose_threads

    logger.info("CPU: %s", choose_threads())


def stdout_console() -> Console:
    """Console for results; wide where nobody's window limits it."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH_IN_FILES)


def stderr_console() -> Console:
    """Console for progress and notes; says nothing with `-q`."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, quiet=is_quiet())


def layer_pattern(text: str) -> tuple[str, NMPattern]:
    """Read the GLOB=N:M of `--layer`."""
    from nm2trt.selectors import parse_layer_pattern

    return parse_layer_pattern(text)


def schema_option(load: Callable[[], type[Document]], file: str) -> Callable[[F], F]:
    """`--schema`: print the JSON schema of the document that a command writes, and exit.

    Args:
        load: Imports the document's class; called only when the option is given.
        file: The document's name in the help.
    """

    def print_schema(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
        if asked:
            import json

            click.echo(json.dumps(load().json_schema(), indent=2))
            context.exit()

    return click.option(
        "--schema",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=print_schema,
        help=f"Print the JSON schema of {file} and exit.",
    )


def check_plot(plot: Path) -> None:
    """Refuse a `--plot` that would fail after the work, or replace something that is no picture.

    Raises:
        ConfigError: It is no PNG in an existing folder.
    """
    from nm2trt.errors import ConfigError

    where = f"--plot {plot}"
    if plot.suffix.lower() != ".png":
        raise ConfigError("is no .png", where=where, hint="name the file F.png")
    if plot.is_dir():
        raise ConfigError("is a folder", where=where, hint="name a file")
    if not plot.parent.is_dir():
        raise ConfigError("parent directory does not exist", where=where, hint="name a file in an existing folder")
    if plot.exists():
        with plot.open("rb") as file:
            if file.read(8) != b"\x89PNG\r\n\x1a\n":
                raise ConfigError("exists and is no PNG", where=where, hint="choose another name")
