"""Entry point: finds commands, turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import traceback
from typing import Any, NoReturn, TextIO, cast

import click

from nm2trt._version import __version__
from nm2trt.errors import EXIT_BUG, EXIT_INPUT, EXIT_MACHINE, Nm2trtError

COMMANDS = (
    "train",
    "verify",
    "prune",
    "calibrate",
    "export",
    "inspect",
    "refit",
    "estimate",
    "recommend",
    "profile",
    "compare",
    "package",
    "serve",
    "check-server",
    "benchmark-gpu",
    "demo",
    "doctor",
)
"""In the order a network passes through them; each lives in nm2trt/cli/NAME.py as `command`."""

_FORMER_NAMES = {"plan": "recommend"}
"""Spellings that scripts may hold; a plan is TensorRT's word for an engine file."""

_INTERRUPTED = 130
_PATH_ERRORS = (PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_PATH_ERRNOS = frozenset({errno.ENAMETOOLONG, errno.EROFS, errno.ELOOP, errno.EINVAL, errno.ENXIO})


class _Commands(click.Group):
    """Loads a command's file only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name in _FORMER_NAMES:
            click.echo(f"nm2trt {cmd_name} is called nm2trt {_FORMER_NAMES[cmd_name]} now", err=True)
            cmd_name = _FORMER_NAMES[cmd_name]
        if cmd_name not in COMMANDS:
            return None
        module = cmd_name.replace("-", "_")
        command: click.Command = importlib.import_module(f"nm2trt.cli.{module}").command
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            from nm2trt.extras import explain_missing_module

            explained = explain_missing_module(error.name, command=ctx.invoked_subcommand)
            if explained is None:
                raise
            raise explained from error


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nm2trt")
def cli() -> None:
    """Take a neural network from N:M sparse training to TensorRT, with proof at every step.

    \b
    train -> verify -> calibrate -> export -> profile -> package

    Every stage writes a folder with a manifest; the next stage reads it. New here? Run `nm2trt demo`,
    then open the report that it names. `nm2trt doctor` tells what this machine can do.

    \b
    Exit codes: 0 good, 1 the check failed, 2 wrong usage, 3 unusable input,
    4 missing dependency or hardware, 70 internal error.
    """


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; prints at most one error line for what a user can hint."""
    try:
        result = cli.main(args=arguments, prog_name="nm2trt", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        # What click makes of KeyboardInterrupt, and so of SIGTERM.
        return _say("interrupted; nothing half-written was left", _INTERRUPTED)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Nm2trtError as error:
        return _say(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _say("interrupted; nothing half-written was left", _INTERRUPTED)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return _say(
                f"{error.filename or 'output'}: the disk is full; free space or choose another -o",
                EXIT_MACHINE,
            )
        if isinstance(error, _PATH_ERRORS) or (error.filename and error.errno in _PATH_ERRNOS):
            return _say(f"{error.filename}: {error.strerror}", EXIT_INPUT)
        return _bug()
    except Exception:  # noqa: BLE001 -- the outermost frame
        return _bug()
    return result if isinstance(result, int) else 0


class _Output:
    """Standard output whose reader may go away (`nm2trt verify F | head`), which changes no verdict."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def main() -> NoReturn:
    """Console script."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.stdout = cast(TextIO, _Output(sys.stdout))
    sys.exit(run())


def _terminate(*_: object) -> NoReturn:
    # As an exception, so that whatever was staged is cleared away.
    raise KeyboardInterrupt


def _say(line: str, exit_code: int) -> int:
    click.echo(f"nm2trt: error: {line}", err=True)
    return exit_code


def _bug() -> int:
    traceback.print_exc()
    return _say("internal error; please report the lines above", EXIT_BUG)
