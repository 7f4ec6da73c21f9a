"""Taking a version out of service: by removing it, or by going back to the one before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nm2trt.artifacts.package import PackageDocument
from nm2trt.errors import ConfigError, InputError
from nm2trt.serve.lock import locked
from nm2trt.serve.model_files import model_files
from nm2trt.serve.publish import rewrite
from nm2trt.serve.repository import CONFIG, Held, published, without


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A model after a version was taken out of service."""

    document: PackageDocument
    folder: Path
    version: int
    """Removed, or rolled back."""
    notes: tuple[str, ...]


def remove_version(
    repository: Path,
    name: str,
    number: int,
    *,
    keep_config: bool | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> Changed:
    """Remove a version's files; the newest one that is left serves requests without a version.

    A version that is gone already, damaged, or unknown to package.json can be removed too.

    Raises:
        ConfigError: There is no such version, it is the last that can be served, or config.pbtxt was edited.
        InputError: package.json cannot be read.
    """
    with locked(repository, on_wait=on_wait):
        folder = repository / name
        held, recorded = _held(repository, name, besides=number)
        if number not in recorded and not (folder / str(number)).is_dir():
            raise ConfigError(
                f"{name} has no version {number}", where="--remove-version", hint=f"it has {_list(recorded)}"
            )
        left = without(held.document, {number})
        _check_left(left, folder, f"version {number} is the only one that can be served")
        document = _apply(left, held, folder, keep_config=keep_config, remove=number)
        return Changed(document=document, folder=folder, version=number, notes=_other_notes(held, number))


def roll_back(
    repository: Path,
    name: str,
    *,
    keep_config: bool | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> Changed:
    """Go back to the version before the one that is served; the newer one's files stay and are not loaded.

    Raises:
        ConfigError: There is no version before, or config.pbtxt was edited.
        InputError: package.json cannot be read.
    """
    with locked(repository, on_wait=on_wait):
        folder = repository / name
        held, _ = _held(repository, name)
        if not held.document.served:
            raise InputError("holds no version that can be served", where=folder, hint="package a build")
        number = held.document.current.version
        withdrawn = tuple(sorted({*held.document.withdrawn, number}))
        left = held.document.model_copy(update={"withdrawn": withdrawn})
        _check_left(left, folder, f"there is no version before {number} to go back to")
        document = _apply(left, held, folder, keep_config=keep_config, remove=None)
        return Changed(document=document, folder=folder, version=number, notes=_other_notes(held, number))


def _held(repository: Path, name: str, *, besides: int | None = None) -> tuple[Held, list[int]]:
    """What is there, and all versions that package.json names."""
    held = published(repository, name, besides=besides)
    if held is None:
        raise ConfigError(f"holds no model {name!r}", where=repository, hint="name one with --name")
    recorded = PackageDocument.read(repository / name)
    return held, [version.version for version in recorded.versions]


def _check_left(document: PackageDocument, folder: Path, what: str) -> None:
    if not document.served:
        raise ConfigError(what, where=folder, hint="package another build first, or remove the model's whole folder")


def _apply(
    document: PackageDocument, held: Held, folder: Path, *, keep_config: bool | None, remove: int | None
) -> PackageDocument:
    if held.edited and keep_config is None:
        raise ConfigError(
            "was edited by hand (its first line tells)",
            where=folder / CONFIG,
            hint="keep the edits with --keep-config, or drop them with --rewrite-config",
        )
    largest = _largest(document)
    batch = document.current.batch or document.batch
    document = document.model_copy(update={"max_batch": largest, "batch": batch, "last_version": held.last})
    current = folder / str(document.current.version)
    files, warmup = model_files(
        document, folder, current=current, edited=held.config if keep_config and held.edited else None
    )
    rewrite(folder, files, warmup, remove=remove)
    return document


def _largest(document: PackageDocument) -> int:
    """The largest batch, once other versions are loaded."""
    if document.max_batch == 0 or document.platform != "tensorrt_plan":
        return document.max_batch
    sizes = [version.batch.max for version in document.served if version.batch is not None]
    asked = [document.max_batch_asked] if document.max_batch_asked else []
    return min([*sizes, *asked], default=document.max_batch)


def _other_notes(held: Held, number: int) -> tuple[str, ...]:
    return tuple(note for version, note in held.notes.items() if version != number)


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
