"""What is being done, in one line that moves on a terminal; with `-v` a log line each."""

from __future__ import annotations

import logging
import sys
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
    # rich is loaded only where somebody can see it: it takes longer than most checks.
    if is_quiet() or not sys.stderr.isatty():
        yield None
        return
    console = stderr_console()
    from nm2trt.cli.render.verify import plain

    with console.status(first) as status:
        yield lambda words: status.update(plain(words).replace("[", r"\["))
