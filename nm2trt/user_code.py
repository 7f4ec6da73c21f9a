"""Functions of the user's own, named as `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nm2trt.errors import ConfigError, InputError

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_reference(name: str) -> bool:
    """Tell whether a name reads `package.module:function`."""
    return _REFERENCE.fullmatch(name) is not None


def load_function(reference: str, option: str) -> Callable[..., Any]:
    """Import a function, also from the current folder.

    The current folder is searched first for the module itself, and last for what is imported afterwards.

    Args:
        reference: `package.module:function`.
        option: That named it, for error lines.

    Raises:
        ConfigError: There is no such module or function.
        InputError: The module cannot be imported.
    """
    module_name, _, path = reference.partition(":")
    found: Any = _import(module_name, option)
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigError(
                f"{getattr(found, '__file__', None) or module_name} has no {part!r}", where=f"{option} {reference}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{path} is {type(found).__name__} and cannot be called", where=f"{option} {reference}")
    function: Callable[..., Any] = found
    return function


def call(function: Callable[..., Any], reference: str, option: str, offered: Mapping[str, Any]) -> Any:
    """Call a user's function with those of the offered keywords that it takes.

    Raises:
        ConfigError: It asks for an argument that is not offered.
        InputError: It raised; the line says what and where.
    """
    where = f"{option} {reference}"
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        # Builtins tell nothing of themselves.
        parameters = []
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if unknown := sorted(required - offered.keys()):
        raise ConfigError(
            f"asks for {', '.join(unknown)}", where=where, hint=f"it can have {', '.join(offered)}, as keywords"
        )
    try:
        return function(**{name: value for name, value in offered.items() if takes_all or name in names})
    except (ConfigError, InputError):
        raise
    except Exception as error:
        raise InputError(f"raised {describe(error)}", where=where) from error


def _import(module_name: str, option: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"there is no module {module_name!r}", where=option, hint="install it, or run in the folder that has it"
            ) from None
        raise InputError(f"importing {module_name} raised {describe(error)}", where=option) from error
    except Exception as error:
        raise InputError(f"importing {module_name} raised {describe(error)}", where=option) from error
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


def describe(error: Exception) -> str:
    """Say what a user's code raised and in which line: the innermost one that is neither a library's nor ours."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not _is_library(frame.filename)] or frames
    at = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {error}{at}"


def _is_library(filename: str) -> bool:
    parts = Path(filename).parts
    ours = Path(__file__).resolve().parent
    return bool({"site-packages", "dist-packages"} & set(parts)) or _sits_in(filename, ours) or filename.startswith("<")


def _sits_in(filename: str, folder: Path) -> bool:
    path = Path(filename).resolve()
    return folder in path.parents or (folder.parent / "training") in path.parents
