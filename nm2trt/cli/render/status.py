"""What is being done, in one line that moves on a terminal; with `-v` a log line each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nm2trt.cli.common import stderr_console
from nm2trt.cli.verbosity import is_quiet, is_verbose

logger = logging.getLogger(__name__)


@contextmanager
def show_status(first: str) -> Iterator[Callable[[str], None] | None]:
    """Give a function that shows what it is told; None where nobody would see it.

    Args:
        first: Shown until the function is called.
    """
    if is_verbose():
        yield logger.debug
        return
    console = stderr_console()
    if is_quiet() or not console.is_terminal:
        yield None
        return
    from nm2trt.cli.render.verify import plain

    with console.status(first) as status:
        yield lambda words: status.update(plain(words).replace("[", r"\["))
