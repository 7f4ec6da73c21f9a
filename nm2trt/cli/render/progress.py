"""Progress on a terminal; silence elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nm2trt.cli.common import stderr_console


@contextmanager
def training_progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Give a function (done, of, words) that moves a bar on stderr, if that is a terminal."""
    console = stderr_console()
    if not console.is_terminal:
        yield lambda *_: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[words]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None, words="")

        def move(done: int, total: int, words: str) -> None:
            bar.update(task, completed=done, total=total, words=words)

        yield move


@contextmanager
def measuring_progress() -> Iterator[Callable[[str, float], None] | None]:
    """Give a function (what, share done) that moves a bar on stderr; None where nobody would see it."""
    console = stderr_console()
    if not console.is_terminal:
        yield None
        return
    from rich.progress import Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("opening", total=1.0)

        def move(what: str, share: float) -> None:
            bar.update(task, completed=share, description=what)

        yield move


@contextmanager
def counted_progress(first: str) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function (what, done, of) that says what is being done and moves a bar on stderr, if that is a terminal.

    Args:
        first: Shown until the function is called.
    """
    console = stderr_console()
    if not console.is_terminal:
        yield lambda *_: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(first, total=None)

        def move(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield move
