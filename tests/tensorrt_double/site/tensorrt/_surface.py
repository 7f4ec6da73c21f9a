"""The surface of a TensorRT binding: classes with the attributes and signatures that pybind11 put into docstrings."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

_QUALIFIER = re.compile(r"\b(?:tensorrt\w*|tensorrt_rtx\w*)\.(?:tensorrt|tensorrt_rtx)\.")
_SPECIAL = ("__len__", "__getitem__", "__iter__", "__call__", "__buffer__")


@dataclass(frozen=True)
class Signature:
    """One overload of a method, `self` left out."""

    text: str
    names: tuple[str, ...]
    types: tuple[str, ...]
    """As pybind11 writes them; "" where it gives none."""
    required: frozenset[str]
    returns: str

    def bind(self, module: ModuleType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Match arguments to parameters; None where pybind11 would refuse them."""
        if len(args) > len(self.names) or not set(kwargs) <= set(self.names):
            return None
        positional = dict(zip(self.names, args, strict=False))
        given = positional | kwargs
        if positional.keys() & kwargs.keys() or not self.required <= given.keys():
            return None
        kinds = dict(zip(self.names, self.types, strict=True))
        return given if all(_accepts(module, kinds[name], value) for name, value in given.items()) else None


@dataclass(frozen=True)
class Property:
    """A property, its type as pybind11 writes it, and whether it may be set."""

    type: str
    writable: bool


@dataclass
class ClassSurface:
    """What one class of the bindings offers."""

    methods: dict[str, tuple[Signature, ...]] = field(default_factory=dict)
    properties: dict[str, Property] = field(default_factory=dict)
    constants: tuple[str, ...] = ()


@cache
def surface_of(cls: type) -> ClassSurface:
    """Read one class, its bases included."""
    found = ClassSurface()
    constants = list(getattr(cls, "__members__", {}))
    for name in dir(cls):
        if name.startswith("__") and name not in _SPECIAL:
            continue
        value = inspect.getattr_static(cls, name)
        if isinstance(value, property):
            lines = _clean(value.fget.__doc__ if value.fget else "").splitlines()
            returns = re.search(r"-> (.+)$", lines[0]) if lines else None
            found.properties[name] = Property(returns.group(1) if returns else "", value.fset is not None)
        elif name in constants or not (callable(value) or isinstance(value, (staticmethod, classmethod))):
            constants.append(name)
        else:
            function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
            found.methods[name] = _signatures(function.__doc__, name)
    found.constants = tuple(dict.fromkeys(constants))
    return found


def init_signatures(cls: type) -> tuple[Signature, ...]:
    """The overloads of the constructor."""
    return _signatures(cls.__init__.__doc__, "__init__")  # type: ignore[misc]


def describe(module: ModuleType) -> dict[str, Any]:
    """The whole surface as JSON: class -> attribute -> class that it returns, "" for everything else."""
    classes: dict[str, dict[str, str]] = {}
    names: list[str] = []
    bound = {name for name in dir(module) if inspect.isclass(getattr(module, name))}
    for name in sorted(dir(module)):
        value = getattr(module, name)
        if inspect.ismodule(value) or (name.startswith("__") and name != "__version__"):
            continue
        names.append(name)
        if name in bound and value.__module__.split(".")[0].startswith("tensorrt"):
            surface = surface_of(value)
            returned = {attribute: one.type for attribute, one in surface.properties.items()}
            returned |= {attribute: all_[0].returns if all_ else "" for attribute, all_ in surface.methods.items()}
            returned |= dict.fromkeys(surface.constants, "")
            classes[name] = {key: kind if kind in bound else "" for key, kind in sorted(returned.items())}
    return {"version": module.__version__, "names": names, "classes": classes}


def _clean(doc: str | None) -> str:
    return _QUALIFIER.sub("", doc or "").strip()


def _signatures(doc: str | None, name: str) -> tuple[Signature, ...]:
    lines = re.findall(rf"^(?:\d+\. )?({re.escape(name)}\(.*\) -> .*)$", _clean(doc), re.MULTILINE)
    return tuple(_signature(line) for line in lines if "*args, **kwargs" not in line)


def _signature(text: str) -> Signature:
    start, end = text.index("(") + 1, text.rindex(") ->")
    names, types, required = [], [], []
    for part in _split(text[start:end]):
        name, _, rest = part.partition(":")
        kind, equals, _ = rest.partition(" = ")
        if name.strip() == "self":
            continue
        names.append(name.strip())
        types.append(kind.strip())
        if not equals:
            required.append(name.strip())
    return Signature(text, tuple(names), tuple(types), frozenset(required), text[end + len(") ->") :].strip())


def _split(parameters: str) -> list[str]:
    parts, depth, current = [], 0, ""
    for letter in parameters:
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += letter
    return [*parts, current.strip()] if current.strip() else parts


def _accepts(module: ModuleType, kind: str, value: Any) -> bool:
    """Whether pybind11 would convert the value; types that are not known here are let through."""
    plain = {"str": str, "bool": bool, "tuple": tuple, "list": list, "dict": dict}
    if kind == "str":
        return value is None or isinstance(value, str)
    if kind in plain:
        return isinstance(value, plain[kind])
    if "Buffer" in kind or kind == "buffer":
        try:
            memoryview(value)
        except TypeError:
            return False
        return True
    if "SupportsInt" in kind and "Sequence" not in kind:
        return hasattr(value, "__int__") and not isinstance(value, str)
    if "Dims" in kind or "Sequence" in kind:
        return hasattr(value, "__iter__") and not isinstance(value, str)
    real = getattr(module, kind, None)
    if isinstance(real, type) and hasattr(real, "__members__"):
        return isinstance(value, real)
    if isinstance(real, type):
        return (
            value is None
            or isinstance(value, real)
            or type(value).__name__ == kind
            or getattr(value, "_real_name", "") == kind
        )
    return True
