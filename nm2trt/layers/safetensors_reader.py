"""Layers of a .safetensors file. The library checks the header; tensors are read one by one, never the file whole."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.layers.checkpoint import StoredTensor, layers_of, neighbors_of
from nm2trt.layers.config_json import read_config
from nm2trt.layers.metadata import METHOD_KEY, claimed_patterns
from nm2trt.layers.stream import LayerSource
from nm2trt.library_errors import one_line

_LENGTH_BYTES = 8
_HINT = "copy or download the file again, or write it with safetensors"

_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "C64": np.complex64,
}


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Byte offset in the file."""
    size_bytes: int


def open_safetensors(path: Path) -> LayerSource:
    """Open a .safetensors file.

    Raises:
        InputError: The file is missing, truncated, empty, no safetensors, or its header lies about the data.
    """
    metadata, entries = _read_header(path)
    tensors, claims = _stored(path, entries), claimed_patterns(metadata, path)
    return LayerSource(
        path=path,
        kind="checkpoint",
        layers=partial(layers_of, tensors, neighbors_of(tensors, read_config(path), claims or ())),
        patterns=claims,
        method=metadata.get(METHOD_KEY),
    )


def safetensors_tensors(path: Path) -> list[StoredTensor]:
    """List the tensors of a .safetensors file; errors as `open_safetensors`."""
    return _stored(path, _read_header(path)[1])


def _stored(path: Path, entries: list[_Entry]) -> list[StoredTensor]:
    return [
        StoredTensor(
            entry.name, entry.shape, _dtype_name(entry), partial(_load, path, entry), partial(_load_range, path, entry)
        )
        for entry in entries
    ]


def _dtype_name(entry: _Entry) -> str:
    known = _DTYPES.get(entry.dtype)
    return np.dtype(known).name if known is not None else entry.dtype.lower()


def _read_header(path: Path) -> tuple[dict[str, str], list[_Entry]]:
    """Let the library check the header (sizes, overlaps, truncation), then take the offsets that it does not give."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except PermissionError:
        raise InputError("may not be read", where=path, hint="check its permissions") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = one_line(str(error).removeprefix("Error while deserializing header: "))
        raise InputError(f"is no complete safetensors file: {reason}", where=path, hint=_HINT) from None
    metadata = header.pop("__metadata__", None) or {}
    origin = _LENGTH_BYTES + length
    entries = [
        _Entry(name, info["dtype"], tuple(info["shape"]), origin + info["data_offsets"][0], _span(info))
        for name, info in header.items()
    ]
    return metadata, sorted(entries, key=lambda entry: entry.start)


def _span(info: dict[str, Any]) -> int:
    start, stop = info["data_offsets"]
    return int(stop) - int(start)


def _load(path: Path, entry: _Entry) -> NDArray[Any]:
    return _load_range(path, entry, 0, math.prod(entry.shape)).reshape(entry.shape)


def _load_range(path: Path, entry: _Entry, start: int, stop: int) -> NDArray[Any]:
    known = _DTYPES.get(entry.dtype)
    if known is None:
        raise InputError(f"tensor {entry.name!r}: values of type {entry.dtype} cannot be read", where=path)
    dtype = np.dtype(known)
    # The two parsers of the header may read a malicious one differently; sizes are checked before memory is taken.
    if math.prod(entry.shape) * dtype.itemsize != entry.size_bytes:
        raise InputError(
            f"tensor {entry.name!r}: shape {list(entry.shape)} does not fit {entry.size_bytes} bytes", where=path
        )
    with path.open("rb", buffering=0) as file:
        if entry.start + entry.size_bytes > os.fstat(file.fileno()).st_size:
            raise InputError(f"tensor {entry.name!r}: the file ends before it does", where=path, hint=_HINT)
        file.seek(entry.start + start * dtype.itemsize)
        raw = np.fromfile(file, dtype=np.uint8, count=(stop - start) * dtype.itemsize)
    if raw.size != (stop - start) * dtype.itemsize:
        raise InputError(f"tensor {entry.name!r}: the file ends inside it", where=path, hint=_HINT)
    return raw.view(dtype)
