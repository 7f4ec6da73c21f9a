"""Triton model repositories: a version appears whole or not at all, beside the ones that are served."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from nm2trt.artifacts import sha256_of, write_atomic
from nm2trt.artifacts.files import make_parents
from nm2trt.artifacts.package import PackageDocument
from nm2trt.errors import ConfigError, InputError

CONFIG = "config.pbtxt"
LABELS = "labels.txt"


def read_model(folder: Path) -> PackageDocument:
    """Read and check a model that we packaged: every file of every version against its sha256.

    Raises:
        InputError: A file is missing, was changed, or lies there unnamed.
    """
    document = PackageDocument.read(folder, mend="package it again")
    if document.model != folder.name:
        raise InputError(
            f"package.json is of model {document.model!r}", where=folder, mend="give the folder its name back"
        )
    known = {version.version: version for version in document.versions}
    for number in version_folders(folder):
        if number not in known:
            raise InputError(f"version {number} is not in package.json", where=folder, mend="remove that folder")
    for number, version in known.items():
        for name, record in version.files.items():
            path = folder / str(number) / name
            if not path.is_file():
                raise InputError("is missing, though package.json names it", where=path, mend="package it again")
            if sha256_of(path) != record.sha256:
                raise InputError("was changed since it was packaged (sha256)", where=path, mend="package it again")
    return document


def version_folders(folder: Path) -> list[int]:
    """Numbers of the version folders, as Triton counts them: plain numbers without a leading zero."""
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and not name.startswith("0"))


def model_folders(repository: Path) -> list[Path]:
    """Folders that Triton would take for models.

    Raises:
        InputError: There is no such repository, or it holds no model.
    """
    if not repository.is_dir():
        raise InputError("no such folder", where=repository, mend="make one with `nm2trt package BUILD -o REPOSITORY`")
    found = sorted(entry for entry in repository.iterdir() if (entry / CONFIG).is_file())
    if not found:
        raise InputError(
            "holds no model (no folder with a config.pbtxt)",
            where=repository,
            mend="make one with `nm2trt package BUILD -o REPOSITORY`",
        )
    return found


def check_repository(repository: Path) -> dict[str, tuple[str, list[int]]]:
    """Check every model before a server opens it; those that we packaged against their sha256.

    Returns:
        Model -> backend that its configuration names, and its versions.

    Raises:
        InputError: No repository, no model, no version, or a changed file.
    """
    models = {}
    for folder in model_folders(repository):
        if (folder / PackageDocument.FILE).is_file():
            read_model(folder)
        versions = version_folders(folder)
        if not versions:
            raise InputError("holds no version", where=folder, mend="package it again, or remove the folder")
        models[folder.name] = (backend_of((folder / CONFIG).read_text(encoding="utf-8", errors="replace")), versions)
    return models


def backend_of(config: str) -> str:
    """Backend that a config.pbtxt names, by `backend` or by the older `platform`; empty where it names none."""
    found = re.search(r'^\s*backend:\s*"([^"]+)"', config, re.MULTILINE)
    if found:
        return found.group(1)
    platform = re.search(r'^\s*platform:\s*"([^"]+)"', config, re.MULTILINE)
    return platform.group(1).partition("_")[0] if platform else ""


def published(repository: Path, name: str) -> PackageDocument | None:
    """What the repository holds under a name; None where it holds nothing.

    Raises:
        ConfigError: Something that we did not package.
        InputError: Ours, but changed.
    """
    folder = repository / name
    if not folder.exists() and not folder.is_symlink():
        return None
    if not folder.is_dir() or folder.is_symlink() or not (folder / PackageDocument.FILE).is_file():
        raise ConfigError(
            f"the repository holds another {name!r} that nm2trt did not package",
            where=folder,
            mend="choose another --name",
        )
    return read_model(folder)


def next_version(document: PackageDocument | None, wanted: int | None) -> int:
    """Number of the new version: the one that was asked for, or the one after the last.

    Raises:
        ConfigError: It is taken, or below the last: Triton would go on serving the old one.
    """
    last = max((version.version for version in document.versions), default=0) if document else 0
    if wanted is None:
        return last + 1
    if wanted <= last:
        raise ConfigError(
            f"version {wanted} is not above {last}, the last one there; Triton serves the highest",
            where="--version",
            mend=f"use --version {last + 1}, or leave it out",
        )
    return wanted


def check_interface(old: PackageDocument, new: PackageDocument, folder: Path) -> None:
    """Refuse a version that clients of the old one could not use.

    Raises:
        ConfigError: Inputs, outputs, platform, batching or arm differ: another model under this name.
    """
    pairs = [
        ("inputs", old.inputs, new.inputs),
        ("outputs", old.outputs, new.outputs),
        ("platform", old.platform, new.platform),
        ("server", old.server, new.server),
        ("arm", old.versions[-1].arm, new.versions[-1].arm),
        ("batching", old.max_batch > 0, new.max_batch > 0),
    ]
    differing = [what for what, before, after in pairs if before != after]
    if differing:
        raise ConfigError(
            f"the repository holds another model of this name: its {', '.join(differing)} differ",
            where=folder,
            mend="choose another --name, or another -o",
        )


def publish(repository: Path, name: str, version: int, fill: Callable[[Path], dict[str, str]]) -> None:
    """Add a version in one rename; whatever fails, what was served before is still there, unchanged.

    Args:
        repository: Made if it is missing.
        name: Of the model.
        version: A number that is not there yet.
        fill: Writes the version's files into the folder it gets, and returns the model's own files, name -> text.
    """
    folder = repository / name
    fresh = not folder.exists()
    made = make_parents(repository)
    # Outside the repository: a server that polls it would take a half-made folder for a model.
    beside = repository.parent if _one_disk(repository.parent, repository) else repository
    staging = Path(tempfile.mkdtemp(prefix=f".{name}.partial-", dir=beside if fresh else folder))
    try:
        staging.chmod(0o755)
        target = staging / str(version)
        target.mkdir()
        files = fill(target)
        if fresh:
            for file, text in files.items():
                (staging / file).write_text(text, encoding="utf-8")
            staging.rename(folder)
        else:
            target.rename(folder / str(version))
            staging.rmdir()
            _rewrite(folder, files, version)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for one in made:
            if one.is_dir() and not any(one.iterdir()):
                one.rmdir()
        raise


def _rewrite(folder: Path, files: dict[str, str], version: int) -> None:
    """Replace a model's own files, each at once; when one fails, take the version away and put the old ones back."""
    before = {name: (folder / name).read_bytes() if (folder / name).is_file() else None for name in files}
    try:
        for name, text in files.items():
            if before[name] != text.encode():
                write_atomic(folder / name, text)
    except BaseException:
        shutil.rmtree(folder / str(version), ignore_errors=True)
        for name, content in before.items():
            if content is not None and (folder / name).read_bytes() != content:
                write_atomic(folder / name, content)
        raise


def _one_disk(one: Path, other: Path) -> bool:
    return os.stat(one).st_dev == os.stat(other).st_dev  # noqa: PTH116 -- reads as what it asks
