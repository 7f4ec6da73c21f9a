"""Errors that a user can fix. Anything else that escapes is an internal error and keeps its traceback.

The exit codes are those of the command line: 0 good, 1 bad verdict, 2 usage, 3 input, 4 machine, 70 bug.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_BAD_VERDICT = 1
EXIT_USAGE = 2
EXIT_INPUT = 3
EXIT_MACHINE = 4
EXIT_BUG = 70


class Nm2trtError(Exception):
    """One line that says what is wrong, where, and how to go on.

    Args:
        what: The finding, with the value that caused it.
        where: The file, layer, option or index it was found at; may be empty.
        hint: What the user can do about it; may be empty.
    """

    exit_code = EXIT_INPUT

    def __init__(self, what: str, *, where: object = "", hint: str = "") -> None:
        self.what = what
        self.where = str(where)
        self.hint = hint
        line = f"{self.where}: {what}" if self.where else what
        super().__init__(" ".join((f"{line}; {hint}" if hint else line).split()))


class ConfigError(Nm2trtError):
    """A wrong option or configuration value (exit code 2)."""

    exit_code = EXIT_USAGE


class InputError(Nm2trtError):
    """An input that cannot be used: missing, corrupt, unsafe or unsupported (exit code 3)."""

    exit_code = EXIT_INPUT


class MachineError(Nm2trtError):
    """Missing dependency or hardware: TensorRT, a GPU, an extra, disk space (exit code 4)."""

    exit_code = EXIT_MACHINE
