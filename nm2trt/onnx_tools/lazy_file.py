"""Read an ONNX file without its weights: large tensors stay on disk, and what is left goes to the protobuf library.

A model's bytes are nearly all `raw_data` of tensors. Handing them to protobuf copies them three times before the first
weight is seen. So the file's wire format is walked first (keys and lengths only), and the content of every large
`raw_data` is replaced by a token and its place in the file. The small rest is an ordinary model for the library.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from nm2trt.artifacts.formats import foreign_file
from nm2trt.errors import InputError

_PROTOBUF_LIMIT_BYTES = 2**31 - 1
_SMALL_BYTES = 1024
_DEPTH_LIMIT = 100
"""As protobuf's own."""
_TOKEN = os.urandom(16)
"""Unknown to whoever wrote the file; no tensor can hold it by intent."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_RAW = 9
_HINT = "pass an .onnx file"

_Fields = dict[int, "str | None"]
_MESSAGES: dict[str, _Fields] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {_RAW: None},
}
"""The way from a model to its tensors' raw data, by field numbers of onnx.proto."""


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes of a file."""

    path: Path
    start: int
    size_bytes: int


def read_model(path: Path) -> onnx.ModelProto:
    """Parse a model; `raw_range` finds what was left in the file.

    Raises:
        InputError: The file is no ONNX model, or larger than protobuf's limit of 2 GiB.
    """
    if (found := foreign_file(path)) is not None:
        raise InputError(f"is {found.what}", where=path, hint=found.hint.replace("PATH", str(path)))
    if path.stat().st_size > _PROTOBUF_LIMIT_BYTES:
        raise InputError(
            "is larger than protobuf's limit of 2 GiB", where=path, hint="save it with external data (onnx.save)"
        )
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(_without_weights(path))
    except Exception as error:  # noqa: BLE001 -- the parser's error types are not documented
        raise InputError(f"is no ONNX model ({type(error).__name__})", where=path, hint=_HINT) from None
    if model.ir_version < 1 or not (model.graph.node or model.graph.initializer):
        raise InputError("is no ONNX model: it holds no graph", where=path, hint=_HINT)
    return model


def raw_range(tensor: onnx.TensorProto, path: Path) -> FileRange | None:
    """Where in the file a tensor's raw data were left; None where they are in the tensor itself."""
    raw = tensor.raw_data
    if len(raw) != len(_TOKEN) + 16 or not raw.startswith(_TOKEN):
        return None
    place = raw[len(_TOKEN) :]
    return FileRange(path, int.from_bytes(place[:8], "little"), int.from_bytes(place[8:], "little"))


def _without_weights(path: Path) -> bytes:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        pieces: list[bytes] = []
        _walk(raw, 0, len(raw), _MESSAGES["model"], pieces, 0)
        return b"".join(pieces)


def _walk(raw: mmap.mmap, at: int, end: int, fields: Mapping[int, str | None], out: list[bytes], depth: int) -> None:
    """Append a message's fields to `out`."""
    if depth > _DEPTH_LIMIT:
        raise ValueError("nested too deep")
    kept_from = at
    while at < end:
        field_start = at
        key, at = _varint(raw, at, end)
        number, wire = key >> 3, key & 7
        if wire != _BYTES:
            at = _skip(raw, at, end, wire)
            continue
        size, at = _varint(raw, at, end)
        if at + size > end:
            raise ValueError("a field ends behind its message")
        if size >= _SMALL_BYTES and number in fields:
            out.append(raw[kept_from:field_start])
            message = fields[number]
            inner: list[bytes] = []
            if message is None:
                inner.append(_TOKEN + at.to_bytes(8, "little") + size.to_bytes(8, "little"))
            else:
                _walk(raw, at, at + size, _MESSAGES[message], inner, depth + 1)
            out += (_encoded(key), _encoded(sum(map(len, inner))), *inner)
            kept_from = at + size
        at += size
    out.append(raw[kept_from:end])


def _skip(raw: mmap.mmap, at: int, end: int, wire: int) -> int:
    if wire == _VARINT:
        return _varint(raw, at, end)[1]
    if wire not in (_FIXED64, _FIXED32):
        raise ValueError("a wire type that ONNX does not use")
    at += 8 if wire == _FIXED64 else 4
    if at > end:
        raise ValueError("a field ends behind its message")
    return at


def _varint(raw: Any, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("an endless number")


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
