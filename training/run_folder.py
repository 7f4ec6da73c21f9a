"""The folder of a run while it is being written: it grows in place, since a state must outlive a killed process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nm2trt.artifacts.files import check_output, clear_partial, make_parents
from nm2trt.errors import InputError
from nm2trt.training.config import FILE as CONFIG
from nm2trt.training.state import FILE as STATE


@contextmanager
def run_folder(target: Path, *, force: bool, resume: bool) -> Iterator[Path]:
    """Give the run's folder to write into.

    When the block raises, a folder with a saved state stays, to be resumed. Without one nothing is left, and what
    `force` would have replaced is back in its place.

    Raises:
        ConfigError: As `check_output`, when a run is to be started.
        InputError: There is no run to resume.
    """
    if resume:
        if not (target / CONFIG).is_file():
            raise InputError("there is no run to resume", where=target, hint="start one without --resume")
        clear_partial(target)
        yield target
        return
    check_output(target, force=force)
    made = make_parents(target.parent)
    old = _set_aside(target)
    try:
        target.mkdir()
        yield target
    except BaseException:
        if not (target / STATE).is_file():
            shutil.rmtree(target, ignore_errors=True)
            if old is not None:
                (old / target.name).rename(target)
            for folder in made:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        raise
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def _set_aside(target: Path) -> Path | None:
    """Move a folder that may be replaced out of the way; returns the folder that now holds it."""
    if not target.exists():
        return None
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    target.rename(old / target.name)
    return old
