"""Triton model repositories: what lies in one, and whether a server may load it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nm2trt.artifacts import GraphPort
from nm2trt.artifacts.package import PackageDocument
from nm2trt.errors import ConfigError, InputError
from nm2trt.serve.config_reading import backend_of, is_edited, loaded_versions, named_versions, sign
from nm2trt.serve.version_flaws import version_flaws, version_folders

CONFIG = "config.pbtxt"


def read_document(
    folder: Path, *, hint: str = "move its folder out of the repository and package it again"
) -> PackageDocument:
    """Read a model's package.json.

    Raises:
        InputError: It cannot be read, or is another model's.
    """
    document = PackageDocument.read(folder, hint=hint)
    if document.model != folder.name:
        raise InputError(
            f"package.json is of model {document.model!r}", where=folder, hint="give the folder its name back"
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
                hint="package it again"
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
                hint=f"package it again, or {_removal(folder, version.version)}",
            )
        if version.version not in able and version.version not in document.withdrawn and not is_edited(config):
            raise InputError(
                f"config.pbtxt has a server load version {version.version}, which cannot run beside {max(able)}",
                where=folder,
                hint=f"package it again, or {_removal(folder, version.version)}",
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
        raise InputError("no such folder", where=repository, hint="make one with `nm2trt package BUILD -o REPOSITORY`")
    found = sorted(entry for entry in repository.iterdir() if (entry / CONFIG).is_file())
    if not found:
        raise InputError(
            "holds no model (no folder with a config.pbtxt)",
            where=repository,
            hint="make one with `nm2trt package BUILD -o REPOSITORY`",
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
            raise InputError("holds no version", where=folder, hint="package it again, or remove the folder")
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


def published(repository: Path, name: str, *, besides: int | None = None) -> Held | None:
    """What the repository holds under a name; None where it holds nothing.

    Args:
        repository: Model repository.
        name: Of the model.
        besides: A version that may lie there unnamed, since it is about to go.

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
            hint="package into the repository that holds the folder itself, or choose another --name",
        )
    if not folder.is_dir() or not (folder / PackageDocument.FILE).is_file():
        raise ConfigError(
            f"the repository holds another {name!r} that nm2trt did not package",
            where=folder,
            hint="choose another --name; if its package.json is lost, move the folder away and package again",
        )
    document = read_document(folder)
    flaws = version_flaws(folder, document, besides=besides)
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
            hint=f"use --version {last + 1}, or leave it out",
        )
    return wanted


def check_interface(old: PackageDocument, new: PackageDocument, folder: Path) -> None:
    """Refuse a version that clients of the old one could not use.

    Raises:
        ConfigError: Inputs, outputs, platform, batching or variant differ: another model under this name.
    """
    pairs: list[tuple[str, object, object]] = [
        ("inputs", _ports(old.inputs), _ports(new.inputs)),
        ("outputs", _ports(old.outputs), _ports(new.outputs)),
        ("platform", old.platform, new.platform),
        ("server", old.server, new.server),
        ("batching", old.max_batch > 0, new.max_batch > 0),
    ]
    if old.versions:
        pairs.append(("variant", old.versions[-1].variant, new.versions[-1].variant))
    differing = [f"{what} ({before} there, {after} here)" for what, before, after in pairs if before != after]
    if differing:
        raise ConfigError(
            f"the repository holds another model of this name: its {', '.join(differing)} differ",
            where=folder,
            hint="choose another --name, or another -o",
        )


def _ports(ports: tuple[GraphPort, ...]) -> str:
    return ", ".join(f"{port.name} {port.dtype} [{','.join(map(str, port.shape))}]" for port in ports)
