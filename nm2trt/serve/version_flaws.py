"""Versions of a model that are not as package.json says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nm2trt.artifacts import sha256_of
from nm2trt.artifacts.package import PackageDocument, VersionRecord
from nm2trt.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """What is wrong with a version that lies in the repository, or should."""

    version: int
    where: Path
    missing: bool
    """The whole version is gone, as when somebody freed its disk space; else a file is not what it was."""
    what: str


def version_flaws(folder: Path, document: PackageDocument, *, besides: int | None = None) -> list[Flaw]:
    """Hold every version to the sha256 of its files.

    Args:
        folder: The model's.
        document: Names the versions.
        besides: A version that may lie there unnamed, since it is about to go.

    Raises:
        InputError: A version lies there that package.json does not name.
    """
    known = {version.version for version in document.versions}
    for number in version_folders(folder):
        if number not in known and number != besides:
            raise InputError(
                f"version {number} is not in package.json",
                where=folder / str(number),
                hint=f"move it out of the repository and package its build, or --remove-version {number}",
            )
    return [flaw for version in document.versions if (flaw := _flaw_of(folder, version)) is not None]


def _flaw_of(folder: Path, version: VersionRecord) -> Flaw | None:
    number = version.version
    if not (folder / str(number)).is_dir():
        return Flaw(version=number, where=folder / str(number), missing=True, what="is no longer there")
    for name, record in version.files.items():
        path = folder / str(number) / name
        if not path.is_file():
            return Flaw(version=number, where=path, missing=False, what="is missing, though package.json names it")
        if sha256_of(path) != record.sha256:
            return Flaw(version=number, where=path, missing=False, what="was changed since it was packaged (sha256)")
    return None


def version_folders(folder: Path) -> list[int]:
    """Numbers of the version folders, as Triton counts them: plain numbers without a leading zero."""
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and not name.startswith("0"))
