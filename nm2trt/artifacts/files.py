"""Writing that never leaves half a file or half a folder, and sha256 records of what was written."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nm2trt.errors import ConfigError

MANIFESTS = ("run.json", "state/last.pt", "build.json", "report.json", "demo.json", "package.json", "server.json")
"""A folder that holds one of these was written by nm2trt, so `--force` may replace it."""


class FileRecord(BaseModel):
    """What identifies one written file."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    size_bytes: int


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        # hashlib.file_digest came with 3.11.
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Record every file below `folder`, keyed by its path inside it in POSIX form."""
    return {
        path.relative_to(folder).as_posix(): FileRecord(sha256=sha256_of(path), size_bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: into a temporary neighbor, then rename.

    Raises:
        OSError: The disk is full or the folder cannot be written; `path` is as it was before.
    """
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; give the usual rights back.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_output(target: Path, *, force: bool) -> None:
    """Refuse an output folder that would cost the user data, before any work is done.

    Raises:
        ConfigError: The path is a file, or a folder that exists and `force` is off, or that nm2trt did not write.
    """
    try:
        exists = target.exists() or target.is_symlink()
    except OSError as error:
        raise ConfigError(f"cannot be a folder: {error.strerror}", where=target, hint="choose another -o") from None
    if not exists:
        _check_parents(target)
        return
    if not target.is_dir() or target.is_symlink():
        raise ConfigError("the output path exists and is no plain folder", where=target, hint="choose another -o")
    if all(_is_partial(entry) for entry in target.iterdir()):
        return
    if not force:
        raise ConfigError(
            "the output folder exists", where=target, hint="choose another -o, or replace it with --force"
        )
    if not any((target / name).is_file() for name in MANIFESTS):
        raise ConfigError(
            "the folder holds files that nm2trt did not write, so --force leaves it alone",
            where=target,
            hint="choose another -o",
        )


def _check_parents(target: Path) -> None:
    for parent in target.parents:
        if parent.is_dir():
            return
        if parent.exists():
            raise ConfigError("is a file, and no folder can be made below it", where=parent, hint="choose another -o")


@contextmanager
def staged_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a folder to write into that becomes `target` in one rename when the block ends well.

    When the block raises, nothing is left: neither the staged files nor parents that were made for them,
    and a folder that `force` would have replaced is still there.

    Raises:
        ConfigError: As `check_output`.
    """
    check_output(target, force=force)
    made = make_parents(target.parent)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())
        check_output(target, force=force)
        _swap(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _swap(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    target.rename(old / target.name)
    try:
        staging.rename(target)
    except BaseException:
        (old / target.name).rename(target)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _is_partial(path: Path) -> bool:
    """Whether a write was cut off here; its name says so."""
    return path.name.startswith(".") and ".partial-" in path.name


def clear_partial(folder: Path) -> None:
    """Remove what cut-off writes left in a folder of ours."""
    for entry in folder.rglob(".*.partial-*"):
        if entry.is_file():
            entry.unlink()


def make_parents(folder: Path) -> list[Path]:
    """Make `folder` and return what had to be made, innermost first."""
    missing = []
    probe = folder
    while not probe.exists():
        missing.append(probe)
        probe = probe.parent
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
