"""One writer at a time in a model repository."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nm2trt.artifacts.files import make_parents
from nm2trt.errors import ConfigError, MachineError

LOCK = ".nm2trt-package.lock"
"""At the repository's root, where Triton looks for folders only."""
_PAUSE_S = 0.05


@contextmanager
def locked(repository: Path, *, wait_s: float = 60.0, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a repository for writing; it is made if it is missing, and taken away again where nothing came of it.

    The kernel holds the lock (flock) and lets it go with the process, so a killed writer blocks nobody: a lock file
    that is left lying is taken over.

    Args:
        repository: Model repository.
        wait_s: How long to wait for another writer, seconds.
        on_wait: Called once, with one sentence, when there is somebody to wait for.

    Raises:
        ConfigError: Another process still writes after `wait_s`, or the path is no folder.
        MachineError: The file system has no locks.
    """
    if repository.exists() and not repository.is_dir():
        raise ConfigError("is a file, not a folder", where=repository, hint="choose another -o")
    made = make_parents(repository)
    handle = -1
    try:
        handle = _take(repository, wait_s, on_wait)
        yield
    finally:
        if handle >= 0:
            # Before the lock goes: whoever waits for this file sees that it is gone, and makes a new one.
            (repository / LOCK).unlink(missing_ok=True)
            os.close(handle)
        _take_back(made)


def _take(repository: Path, wait_s: float, on_wait: Callable[[str], None] | None) -> int:
    path = repository / LOCK
    deadline = time.monotonic() + wait_s
    told = False
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            # The one before us found nothing to write and took the folder away.
            make_parents(repository)
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "unknown process"
            os.close(handle)
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"another nm2trt package is writing here ({holder})", where=repository, hint="wait for it to end"
                ) from None
            if on_wait is not None and not told:
                on_wait(f"another nm2trt package is writing into {repository} ({holder}); waiting for it")
            told = True
            time.sleep(_PAUSE_S)
            continue
        except OSError as error:
            os.close(handle)
            raise MachineError(
                f"its file system has no locks: {error}", where=repository, hint="package into a local folder and copy"
            ) from None
        if _is_current(handle, path):
            # The name is for whoever waits; a full disk has no byte for it.
            with suppress(OSError):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return handle
        os.close(handle)


def _is_current(handle: int, path: Path) -> bool:
    """Whether the lock that we hold is of the file that is there now, and not of one that was taken away."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _take_back(made: list[Path]) -> None:
    # One that is not empty holds what we wrote, or whoever waited for us.
    with suppress(OSError):
        for folder in made:
            folder.rmdir()
