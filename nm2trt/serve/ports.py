"""Names and types of a model's inputs and outputs as inference servers write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nm2trt.artifacts import BuildDocument, GraphPort
from nm2trt.errors import ConfigError, InputError

_KSERVE_TYPES = {
    "float32": "FP32",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float64": "FP64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "bool": "BOOL",
}
_SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp64": "float64", "float": "float32"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def kserve_type(dtype: str) -> str:
    """Name of a type in the KServe v2 protocol, "FP32"; Triton's configuration writes TYPE_ before it.

    Raises:
        InputError: The protocol has no such type.
    """
    known = _KSERVE_TYPES.get(_SHORT.get(dtype.lower(), dtype.lower()))
    if known is None:
        raise InputError(f"type {dtype!r} has no name in the KServe v2 protocol", hint="cast the port in the ONNX")
    return known


def is_served_type(dtype: str) -> bool:
    """Whether the KServe v2 protocol has a type of numbers for it."""
    return _SHORT.get(dtype.lower(), dtype.lower()) in _KSERVE_TYPES


def numpy_type(dtype: str) -> str:
    """Name of the numpy type of a port's values.

    Raises:
        InputError: numpy has none (bfloat16).
    """
    name = _SHORT.get(dtype.lower(), dtype.lower())
    if name == "bfloat16" or name not in _KSERVE_TYPES:
        raise InputError(f"type {dtype!r} has no numpy type", hint="export with fp32 or fp16 inputs and outputs")
    return name


def check_name(name: str) -> str:
    """Accept a model name that is one plain folder name and needs no quoting in a URL.

    Raises:
        ConfigError: It does not.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise ConfigError(f"model name {name!r}: use letters, digits, '_', '-' and '.'", where="--name")
    return name


def batched_ports(ports: Sequence[GraphPort], *, batched: bool) -> list[tuple[str, str, list[int]]]:
    """(name, KServe type, dims) of each port; dims lack the batch where the server adds it, and -1 is any size."""
    return [
        (port.name, kserve_type(port.dtype), [size if isinstance(size, int) else -1 for size in port.shape[batched:]])
        for port in ports
    ]


def server_shape(port: GraphPort) -> list[int]:
    """Shape as a server's metadata gives it: with the batch, -1 for any size."""
    return [size if isinstance(size, int) else -1 for size in port.shape]


def has_dynamic_batch(build: BuildDocument) -> bool:
    """Whether every input and output has a first dimension that is free: what server-side batching needs."""
    ports = (*build.inputs, *build.outputs)
    return build.batch is not None and all(port.shape and not isinstance(port.shape[0], int) for port in ports)


def free_sizes(build: BuildDocument) -> list[str]:
    """Names of the inputs' free dimensions besides the batch."""
    return [f"{port.name}:{size}" for port in build.inputs for size in port.shape[1:] if not isinstance(size, int)]
