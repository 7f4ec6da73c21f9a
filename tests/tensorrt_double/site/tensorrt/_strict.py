"""The base of simulated classes: they have the attributes and signatures of the real ones, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorrt_bindings

from tensorrt._surface import init_signatures, surface_of
from tensorrt._version import VERSION

Severity = tensorrt_bindings.ILogger.Severity


class Simulated:
    """Looks every name up in the real class of the same name.

    A subclass defines `call_NAME` for a method and `read_NAME` for a computed property; plain properties lie in
    `self._values`. What the real class lacks raises AttributeError, arguments that fit no overload raise TypeError,
    and what is real but not simulated raises NotImplementedError.
    """

    _real_name = ""
    _values: dict[str, Any]

    def __init_subclass__(cls) -> None:
        cls._real_name = cls.__dict__.get("_real_name", cls.__name__)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith(("_", "call_", "read_")):
            return object.__getattribute__(self, name)
        real = self._real_name
        surface = surface_of(getattr(tensorrt_bindings, real))
        if name in surface.properties:
            getter = getattr(type(self), f"read_{name}", None)
            if getter is not None:
                return getter(self)
            if name in self._values:
                return self._values[name]
            raise NotImplementedError(f"double: {real}.{name} is real and not simulated")
        if name not in surface.methods:
            raise AttributeError(f"{real!r} object has no attribute {name!r} in TensorRT {VERSION}")
        implementation = getattr(type(self), f"call_{name}", None)
        if implementation is None:
            raise NotImplementedError(f"double: {real}.{name}() is real and not simulated")
        return self._checked(name, implementation)

    def _checked(self, name: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
        signatures = surface_of(getattr(tensorrt_bindings, self._real_name)).methods[name]

        def call(*args: Any, **kwargs: Any) -> Any:
            for signature in signatures:
                given = signature.bind(tensorrt_bindings, args, kwargs)
                if given is not None:
                    return implementation(self, **given)
            supported = "; ".join(one.text for one in signatures)
            raise TypeError(f"{name}(): incompatible function arguments {args} {kwargs}; supported: {supported}")

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
            return
        real = self._real_name
        properties = surface_of(getattr(tensorrt_bindings, real)).properties
        if name not in properties:
            raise AttributeError(f"{real!r} object has no attribute {name!r} in TensorRT {VERSION}")
        if not properties[name].writable:
            raise AttributeError(f"{real}.{name} cannot be set")
        kind = getattr(tensorrt_bindings, properties[name].type, None)
        if isinstance(kind, type) and value is not None and not isinstance(value, (kind, Simulated)):
            raise TypeError(f"{real}.{name} takes {kind.__name__}, not {value!r}")
        self._values[name] = value


def check_arguments(real_name: str, **kwargs: Any) -> None:
    """Refuse what no constructor of the real class takes."""
    signatures = init_signatures(getattr(tensorrt_bindings, real_name))
    if signatures and all(one.bind(tensorrt_bindings, (), kwargs) is None for one in signatures):
        raise TypeError(f"{real_name}(): incompatible constructor arguments {kwargs}")


def log(logger: Any, severity: Any, text: str) -> None:
    """Write a line as TensorRT does: through the logger, or where it is TensorRT's own, to C's stdout."""
    logger.log(severity, text)


class HostMemory(bytearray):
    """As the real IHostMemory: the buffer protocol, nbytes, dtype and a context; nothing else is used of it."""

    nbytes = property(len)
    dtype = property(lambda _self: tensorrt_bindings.DataType.INT8)

    def __enter__(self) -> HostMemory:
        return self

    def __exit__(self, *_error: object) -> None:
        pass
