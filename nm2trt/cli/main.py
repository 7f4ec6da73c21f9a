"""Entry point: finds commands, turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import signal
import sys
import traceback
from typing import Any, NoReturn, TextIO, cast

import click

from nm2trt._version import __version__
from nm2trt.cli.verbosity import set_verbosity, verbosity_options
from nm2trt.errors import EXIT_BUG, EXIT_INPUT, EXIT_MACHINE, Nm2trtError

COMMANDS = {
    "train": "Train a network to an N:M pattern",
    "verify": "Check every layer of a file against an N:M pattern",
    "prune": "Prune a trained file once, by magnitude",
    "calibrate": "Quantize an ONNX file to INT8",
    "export": "Write ONNX and TensorRT engines",
    "inspect": "Show each engine layer's sparsity eligibility and kernel",
    "refit": "Refit engines with new weights",
    "estimate": "Estimate dense and sparse time of every layer",
    "recommend": "Recommend layers to sparsify",
    "profile": "Time a sparse network against a dense one",
    "compare": "Compare two reports",
    "package": "Put a build into an inference server's model repository",
    "serve": "Serve a model repository with Triton",
    "check-server": "Check that a running server serves a build",
    "benchmark-gpu": "Measure dense and 2:4 matrix products of this GPU",
    "demo": "Run every stage on a small network",
    "doctor": "Report hardware and installed dependencies",
}
"""Name -> one line for the list of commands; in the order a network passes through them. Each lives in
nm2trt/cli/NAME.py as `command`."""

_RENAMED = {"plan": "recommend"}
"""Old name -> today's; still accepted, no longer listed."""

logger = logging.getLogger(__name__)

_INTERRUPTED = 130
_PATH_ERRORS = (PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_PATH_ERRNOS = frozenset({errno.ENAMETOOLONG, errno.EROFS, errno.ELOOP, errno.EINVAL, errno.ENXIO})


class _Commands(click.Group):
    """Loads a command's file only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name in _RENAMED:
            logger.info("nm2trt %s is called nm2trt %s now", cmd_name, _RENAMED[cmd_name])
        name = _RENAMED.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"nm2trt.cli.{name.replace('-', '_')}").command
        command.short_help = COMMANDS[name]
        if not any(parameter.name == "quiet" for parameter in command.params):
            command.params.extend(verbosity_options())
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


@click.command(
    cls=_Commands,
    params=list(verbosity_options()),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="nm2trt")
def cli() -> None:
    """Take a neural network from N:M sparse training to TensorRT, with proof at every step.

    \b
    train -> verify -> calibrate -> export -> profile -> package

    Every stage writes a folder with a manifest; the next stage reads it. New here? Run `nm2trt demo`,
    then open the report that it names. `nm2trt doctor` reports hardware and dependencies.

    \b
    Exit codes: 0 good, 1 check failed, 2 wrong usage, 3 unusable input,
    4 missing dependency or hardware, 70 internal error.
    """


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; prints at most one error line for what a user can fix."""
    set_verbosity()
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


class _Terminated(KeyboardInterrupt):
    """SIGTERM. Python ends by SIGINT, whatever the exit code, once a plain KeyboardInterrupt left an exec of text."""


def _terminate(*_: object) -> NoReturn:
    # As an exception, so that whatever was staged is cleared away.
    raise _Terminated


def _say(line: str, exit_code: int) -> int:
    click.echo(f"nm2trt: error: {line}", err=True)
    return exit_code


def _bug() -> int:
    traceback.print_exc()
    return _say("internal error; please report the lines above", EXIT_BUG)
