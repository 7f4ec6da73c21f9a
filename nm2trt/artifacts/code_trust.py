"""The gate for code that a document names. A run from a stranger may name any module, and importing one runs it.

What the user names on the command line is the user's. What a file names, `package.module:function` in run.json,
config.toml or build.json, is imported only where this machine wrote that file, or where the user says so with --trust.
"Wrote" is a fact about content: the sha256 of each such file is kept in the user's state folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from nm2trt.errors import InputError
from nm2trt.user_code import is_reference

_LIBRARIES = ("timm:", "torchvision:")
"""Prefixes of names that only choose among a library's own networks."""
_FOLDER_MODE = 0o700


def state_folder() -> Path:
    """Where nm2trt keeps what it must remember: $XDG_STATE_HOME/nm2trt, usually ~/.local/state/nm2trt."""
    named = os.environ.get("XDG_STATE_HOME", "")
    # The standard has relative paths ignored.
    base = Path(named) if named and Path(named).is_absolute() else Path.home() / ".local" / "state"
    return base / "nm2trt"


def code_names(named: Mapping[str, str | None]) -> dict[str, str]:
    """Those of the names that would be imported, by field."""
    return {
        field: name
        for field, name in named.items()
        if name is not None and is_reference(name) and not name.startswith(_LIBRARIES)
    }


def record_written(content: bytes | str) -> None:
    """Remember a file that names code as written here.

    A state folder that cannot be written, as in a container, is no failure: the file then needs --trust later.
    """
    data = content.encode() if isinstance(content, str) else content
    with contextlib.suppress(OSError, RuntimeError):
        folder = state_folder() / "written"
        folder.mkdir(parents=True, exist_ok=True, mode=_FOLDER_MODE)
        (folder / hashlib.sha256(data).hexdigest()).touch()


def was_written_here(path: Path) -> bool:
    """Whether this user wrote these very bytes on this machine."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return (state_folder() / "written" / digest).is_file()
    except (OSError, RuntimeError):
        return False


def check_code(path: Path, named: Mapping[str, str | None], *, trust: bool) -> None:
    """Refuse to import what a file names, unless this machine wrote it or the user trusts it.

    Args:
        path: The file.
        named: Field -> name, as the file has it; names of built-in networks and data sets are no code.
        trust: The user vouches for it.

    Raises:
        InputError: It names code, and nobody vouches for it; the line says what would be imported.
    """
    found = code_names(named)
    if not found or trust or was_written_here(path):
        return
    listed = ", ".join(f"{field} {name}" for field, name in found.items())
    modules = ", ".join(dict.fromkeys(name.partition(":")[0] for name in found.values()))
    raise InputError(
        f"was not written on this machine and names code that would be imported and run: {listed}",
        where=path,
        hint=f"look at {modules} first, and pass --trust if you know who wrote it",
    )


def check_inside(path: Path, names: Iterable[str]) -> None:
    """Refuse a document that names files outside its own folder.

    Args:
        path: The document.
        names: Of the files, as it has them.

    Raises:
        InputError: One is absolute, or leads out of the folder.
    """
    for name in names:
        posix, windows = PurePosixPath(name), PureWindowsPath(name)
        if posix.is_absolute() or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts):
            raise InputError(
                f"names a file outside its own folder: {name!r}", where=path, hint="it was not written by nm2trt"
            )
