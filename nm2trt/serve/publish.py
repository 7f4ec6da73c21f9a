"""Writing into a model repository: a version appears whole or not at all, beside the ones that are served."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from nm2trt.artifacts import write_atomic
from nm2trt.artifacts.package import PackageDocument
from nm2trt.errors import ConfigError
from nm2trt.serve.repository import CONFIG

LABELS = "labels.txt"
WARMUP = "warmup"
"""Triton's name for the folder with a model's warm-up data."""


def publish(
    repository: Path,
    name: str,
    version: int,
    fill: Callable[[Path], tuple[dict[str, str], Mapping[str, bytes]]],
) -> None:
    """Add a version in one rename; whatever fails, what was served before is still there, unchanged.

    Args:
        repository: Exists, and is held by `lock.locked`.
        name: Of the model.
        version: A number that is not there yet.
        fill: Writes the version's files into the folder it gets, and returns the model's own files, name -> text, and
            its warm-up data, name -> bytes.

    Raises:
        ConfigError: Something else has the version's name.
    """
    folder = repository / name
    fresh = not folder.exists()
    final = folder / str(version)
    if final.exists() or final.is_symlink():
        raise ConfigError("lies where the new version goes", where=final, hint="remove it, or give --version a number")
    if not fresh:
        _clear_partial(folder)
    # Outside the repository: a server that polls it would take a half-made folder for a model.
    beside = repository.parent if _one_disk(repository.parent, repository) else repository
    staging = Path(tempfile.mkdtemp(prefix=f".{name}.partial-", dir=beside if fresh else folder))
    try:
        staging.chmod(0o755)
        target = staging / str(version)
        target.mkdir()
        files, warmup = fill(target)
        if fresh:
            _write_warmup(staging, warmup)
            for file, text in files.items():
                (staging / file).write_text(text, encoding="utf-8")
            staging.rename(folder)
        else:
            _add(folder, target, files, warmup)
            staging.rmdir()
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _clear_partial(folder: Path) -> None:
    """Remove what a killed process left; the lock says that nobody is writing."""
    for entry in folder.glob(".*.partial-*"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()


def _add(folder: Path, target: Path, files: dict[str, str], warmup: Mapping[str, bytes]) -> None:
    """Put a version beside others; when a step fails, take the version away and put the old files back.

    The order serves whoever reads meanwhile, or comes after a kill. A version that package.json names and that is not
    there counts as removed; one that is there and not named would be a stranger's. config.pbtxt is last: with a policy
    that names versions, Triton does not look at the new one before its settings are there too.
    """
    before = {name: (folder / name).read_bytes() if (folder / name).is_file() else None for name in files}
    final = folder / target.name
    order = sorted(files, key=[LABELS, PackageDocument.FILE, CONFIG].index)
    try:
        _write_warmup(folder, warmup)
        for name in order:
            if name == CONFIG:
                target.rename(final)
            if before[name] != files[name].encode():
                write_atomic(folder / name, files[name])
    except BaseException:
        shutil.rmtree(final, ignore_errors=True)
        for name, content in before.items():
            if content is not None and (folder / name).read_bytes() != content:
                write_atomic(folder / name, content)
        _clean_warmup(folder, before[CONFIG])
        raise
    _clean_warmup(folder, files[CONFIG].encode())


def rewrite(folder: Path, files: dict[str, str], warmup: Mapping[str, bytes], *, remove: int | None = None) -> None:
    """Replace a model's own files, each at once, and take a version away.

    In this order: config.pbtxt, so that no server loads the version any more; its folder; package.json, for which a
    version that it names and that is gone was removed. On a full disk the folder goes first: it makes the space.
    """
    try:
        _write_warmup(folder, warmup)
        write_atomic(folder / CONFIG, files[CONFIG])
    except OSError as error:
        if remove is None or error.errno != errno.ENOSPC:
            raise
        shutil.rmtree(folder / str(remove), ignore_errors=True)
        _write_warmup(folder, warmup)
        write_atomic(folder / CONFIG, files[CONFIG])
    if remove is not None:
        take_away(folder, remove)
    write_atomic(folder / PackageDocument.FILE, files[PackageDocument.FILE])
    _clean_warmup(folder, files[CONFIG].encode())


def _write_warmup(folder: Path, warmup: Mapping[str, bytes]) -> None:
    if warmup:
        (folder / WARMUP).mkdir(exist_ok=True)
    for name, content in warmup.items():
        # Named by its content: one that is there is right, and a running server may be reading it.
        if not (folder / WARMUP / name).is_file():
            write_atomic(folder / WARMUP / name, content)


def _clean_warmup(folder: Path, config: bytes | None) -> None:
    """Remove warm-up data of ours that config.pbtxt no longer names."""
    if not (folder / WARMUP).is_dir():
        return
    for path in (folder / WARMUP).iterdir():
        if re.fullmatch(r"input\d+-[0-9a-f]{16}", path.name) and path.name.encode() not in (config or b""):
            path.unlink()
    if not any((folder / WARMUP).iterdir()):
        (folder / WARMUP).rmdir()


def take_away(folder: Path, version: int) -> None:
    """Remove a version's folder: out of the server's sight in one rename, then file by file."""
    where = folder / str(version)
    if not where.is_dir():
        return
    gone = Path(tempfile.mkdtemp(prefix=f".{version}.partial-", dir=folder))
    where.rename(gone / str(version))
    shutil.rmtree(gone)


def _one_disk(one: Path, other: Path) -> bool:
    return os.stat(one).st_dev == os.stat(other).st_dev  # noqa: PTH116 -- reads as what it asks
