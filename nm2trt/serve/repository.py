"""Triton model repositories: a version appears whole or not at all, beside the ones that are served."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nm2trt.artifacts import GraphPort, write_atomic
from nm2trt.artifacts.package import PackageDocument
from nm2trt.errors import ConfigError, InputError
from nm2trt.serve.config_reading import backend_of, is_edited, loaded_versions, named_versions, sign
from nm2trt.serve.version_flaws import version_flaws, version_folders

CONFIG = "config.pbtxt"
LABELS = "labels.txt"
WARMUP = "warmup"
"""Triton's name for the folder with a model's warm-up data."""


def read_document(
    folder: Path, *, mend: str = "move its folder out of the repository and package it again"
) -> PackageDocument:
    """Read a model's package.json.

    Raises:
        InputError: It cannot be read, or is another model's.
    """
    document = PackageDocument.read(folder, mend=mend)
    if document.model != folder.name:
        raise InputError(
            f"package.json is of model {document.model!r}", where=folder, mend="give the folder its name back"
        )
    return document


def read_model(folder: Path) -> PackageDocument:
    """Read a model that we packaged and check what a server would load of it.

    A version that is not served may be damaged or gone, and so may an old one that was removed to free its space.

    Returns:
        The document without versions that are gone.

    Raises:
        InputError: A served file is missing, was changed, or lies there unnamed.
    """
    document = read_document(folder)
    flaws = version_flaws(folder, document)
    there = without(document, {flaw.version for flaw in flaws if flaw.missing})
    config = (folder / CONFIG).read_text(encoding="utf-8", errors="replace")
    loaded = loaded_versions(config, [version.version for version in there.versions])
    for flaw in flaws:
        if flaw.version in loaded or (flaw.missing and flaw.version in named_versions(config)):
            raise InputError(
                f"version {flaw.version} {flaw.what}" if flaw.missing else flaw.what,
                where=folder if flaw.missing else flaw.where,
                mend="package it again"
                + (f", or {_removal(folder, flaw.version)}" if len(document.versions) > 1 else ""),
            )
    _check_together(folder, there, config, loaded)
    return there


def _check_together(folder: Path, document: PackageDocument, config: str, loaded: list[int]) -> None:
    """Refuse versions that a server would load and that cannot run under this config.pbtxt, or beside each other."""
    others = {version.version for version in document.versions} - set(loaded)
    together = without(document, others)
    able = {version.version for version in together.served}
    for version in together.versions:
        unnamed = [file for file in version.plan_files.values() if f'"{file}"' not in config]
        if unnamed:
            raise InputError(
                f"config.pbtxt does not name {unnamed[0]} of version {version.version}, which it has a server load",
                where=folder,
                mend=f"package it again, or {_removal(folder, version.version)}",
            )
        if version.version not in able and version.version not in document.withdrawn and not is_edited(config):
            raise InputError(
                f"config.pbtxt has a server load version {version.version}, which cannot run beside {max(able)}",
                where=folder,
                mend=f"package it again, or {_removal(folder, version.version)}",
            )


def _removal(folder: Path, version: int) -> str:
    where = shlex.quote(str(folder.parent))
    return f"take this version away: nm2trt package -o {where} --name {folder.name} --remove-version {version}"


def without(document: PackageDocument, numbers: set[int]) -> PackageDocument:
    """Leave versions out of a document."""
    return document.model_copy(
        update={
            "versions": [version for version in document.versions if version.version not in numbers],
            "withdrawn": tuple(number for number in document.withdrawn if number not in numbers),
        }
    )


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
        Model -> backend that its configuration names, and the versions that a server loads.

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
        config = (folder / CONFIG).read_text(encoding="utf-8", errors="replace")
        models[folder.name] = (backend_of(config), loaded_versions(config, versions))
    return models


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a repository holds under a name, as a new version may be put beside it."""

    document: PackageDocument
    """Without versions that are gone; damaged ones are withdrawn."""
    last: int
    """Highest number that was ever used; 0: none."""
    config: str
    notes: Mapping[int, str]
    """What became of versions that are not as they were, in words."""

    @property
    def edited(self) -> bool:
        """Whether config.pbtxt was changed by hand."""
        return is_edited(self.config)


def published(repository: Path, name: str) -> Held | None:
    """What the repository holds under a name; None where it holds nothing.

    Raises:
        ConfigError: Something that we did not package.
        InputError: Ours, but its package.json cannot be read or does not name a version that lies there.
    """
    folder = repository / name
    if not folder.exists() and not folder.is_symlink():
        return None
    if folder.is_symlink():
        raise ConfigError(
            f"is a symbolic link to {folder.readlink()}",
            where=folder,
            mend="package into the repository that holds the folder itself, or choose another --name",
        )
    if not folder.is_dir() or not (folder / PackageDocument.FILE).is_file():
        raise ConfigError(
            f"the repository holds another {name!r} that nm2trt did not package",
            where=folder,
            mend="choose another --name",
        )
    document = read_document(folder)
    flaws = version_flaws(folder, document)
    notes = {}
    damaged = set()
    for flaw in flaws:
        if flaw.missing:
            notes[flaw.version] = f"version {flaw.version} {flaw.what}; package.json drops it"
        elif flaw.version not in document.withdrawn:
            damaged.add(flaw.version)
            notes[flaw.version] = (
                f"version {flaw.version} is no longer served: {flaw.where.name} {flaw.what}; "
                f"--remove-version {flaw.version} takes it away"
            )
    there = without(document, {flaw.version for flaw in flaws if flaw.missing})
    config = folder / CONFIG
    return Held(
        document=there.model_copy(update={"withdrawn": tuple(sorted({*there.withdrawn, *damaged}))}),
        last=max([document.last_version, *(version.version for version in document.versions)]),
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else sign(""),
        notes=notes,
    )


LARGEST_VERSION = 2**63 - 1
"""Triton reads version numbers as int64."""


def next_version(last: int, wanted: int | None) -> int:
    """Number of the new version: the one that was asked for, or the one after the last.

    Raises:
        ConfigError: It is taken, or below the last: Triton would go on serving the old one.
    """
    if wanted is None:
        if last >= LARGEST_VERSION:
            raise ConfigError(f"version {last} is the largest number there is", where="--version")
        return last + 1
    if wanted > LARGEST_VERSION:
        raise ConfigError(f"{wanted} is above {LARGEST_VERSION}, Triton's largest version", where="--version")
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
    pairs: list[tuple[str, object, object]] = [
        ("inputs", _ports(old.inputs), _ports(new.inputs)),
        ("outputs", _ports(old.outputs), _ports(new.outputs)),
        ("platform", old.platform, new.platform),
        ("server", old.server, new.server),
        ("batching", old.max_batch > 0, new.max_batch > 0),
    ]
    if old.versions:
        pairs.append(("arm", old.versions[-1].arm, new.versions[-1].arm))
    differing = [f"{what} ({before} there, {after} here)" for what, before, after in pairs if before != after]
    if differing:
        raise ConfigError(
            f"the repository holds another model of this name: its {', '.join(differing)} differ",
            where=folder,
            mend="choose another --name, or another -o",
        )


def _ports(ports: tuple[GraphPort, ...]) -> str:
    return ", ".join(f"{port.name} {port.dtype} [{','.join(map(str, port.shape))}]" for port in ports)


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
    """
    folder = repository / name
    fresh = not folder.exists()
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
