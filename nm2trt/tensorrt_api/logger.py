"""TensorRT's messages: to stderr instead of C++'s stdout, with the last errors kept for the line that a user sees."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any, TypeVar

from nm2trt.errors import InputError, MachineError
from nm2trt.tensorrt_api.types import ILogger, Tensorrt

T = TypeVar("T")
_LETTERS = {"INTERNAL_ERROR": "F", "ERROR": "E", "WARNING": "W", "INFO": "I", "VERBOSE": "V"}
_KEPT = 5


class LogKeeper:
    """Writes every message of a severity to stderr, and keeps the last errors.

    Args:
        least: The least severe messages that are written: "VERBOSE", "INFO", "WARNING" or "ERROR".
    """

    def __init__(self, least: str = "WARNING") -> None:
        order = list(_LETTERS)
        self._written = frozenset(order[: order.index(least) + 1])
        self._errors: deque[str] = deque(maxlen=_KEPT)
        self.logger: ILogger
        """What TensorRT's objects take."""

    def take(self, severity: str, message: str) -> None:
        """Handle one message."""
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._errors.append(" ".join(message.split()))
        if severity in self._written:
            # In one write, and at once: a process that dies must not take the reason with it.
            sys.stderr.write(f"[{_LETTERS[severity]}] {message}\n")
            sys.stderr.flush()

    @property
    def last_error(self) -> str:
        """The last error, in one line; "" where there was none."""
        return self._errors[-1] if self._errors else ""

    def because(self) -> str:
        """The last error behind a colon, for the end of a sentence; "" where nothing was logged."""
        return f": {self.last_error}" if self._errors else ""


def keep_log(trt: Tensorrt, least: str = "WARNING") -> LogKeeper:
    """Make a logger. Keep the keeper as long as any object that was made with its logger."""
    keeper = LogKeeper(least)
    base: Any = trt.ILogger

    class Logger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            keeper.take(str(severity).rpartition(".")[2], msg)

    keeper.logger = Logger()
    return keeper


def require(
    value: T | None,
    what: str,
    log: LogKeeper,
    *,
    error: type[InputError | MachineError] = MachineError,
    where: object = "",
    hint: str = "",
) -> T:
    """Return what TensorRT made; it returns None, without an exception, where it could not.

    Raises:
        InputError: The value is None and the input is to blame.
        MachineError: The value is None and the machine is to blame.
    """
    if value is None:
        raise error(f"{what}{log.because()}", where=where, hint=hint)
    return value
