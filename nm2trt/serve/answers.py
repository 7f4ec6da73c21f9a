"""Answers of the KServe v2 protocol, read strictly: every byte is accounted for, or the answer cannot be read.

tritonclient's own reader resizes: of an output with too few bytes it repeats the first ones. A check needs the truth.
Source: https://github.com/kserve/open-inference-protocol, and Triton's extension "binary tensor data".
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

HEADER_LENGTH = "Inference-Header-Content-Length"
"""HTTP header: bytes of JSON before the binary tensors."""

_NUMPY = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_GRPC_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
_DIGITS = re.compile(r"[0-9]{1,18}")
_SHOWN = 160
_HTTP_OK = 200


class Failure(str, Enum):
    """Why a request got no answer that can be compared."""

    UNREACHABLE = "unreachable"
    """Nothing listens there, or TLS does not come about."""
    NO_ANSWER = "no-answer"
    """Dropped or timed out."""
    ERROR = "error"
    """The server answered with an error."""
    UNREADABLE = "unreadable"
    """Truncated, empty, no JSON, sizes that do not add up."""
    FOREIGN = "foreign"
    """Another request's id, another model, another version."""


_SENTENCES = {
    Failure.UNREACHABLE: "The server did not answer",
    Failure.NO_ANSWER: "The server did not answer",
    Failure.ERROR: "the server answered with an error",
    Failure.UNREADABLE: "the answer cannot be read",
    Failure.FOREIGN: "the answer is not what was asked for",
}


class RequestFailed(Exception):  # noqa: N818 -- a finding about the server, not a mistake of ours
    """A request without an answer that can be compared.

    Args:
        failure: Which kind.
        detail: The server's or the system's own words, or what does not add up.
    """

    def __init__(self, failure: Failure, detail: str) -> None:
        self.failure = failure
        self.detail = printable(detail) or "no reason given"
        super().__init__(f"{_SENTENCES[failure]}: {self.detail}")


def printable(text: str) -> str:
    """A server's words on one line, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer, read."""

    outputs: dict[str, Array] = field(default_factory=dict)
    model: str = ""
    version: str = ""
    """Empty where the server does not say."""
    request_id: str = ""


def read_http_answer(status: int, body: bytes, header_length: str | None) -> Answer:
    """Read the body of an answer to `POST v2/models/MODEL/infer`.

    Args:
        status: HTTP status.
        body: All of it.
        header_length: Value of HEADER_LENGTH; None where the server sent none, and all is JSON.

    Raises:
        RequestFailed: The server answered with an error, or the body does not add up.
    """
    if status != _HTTP_OK:
        raise RequestFailed(Failure.ERROR, f"HTTP {status}: {error_text(body)}")
    end = len(body)
    if header_length is not None:
        if not _DIGITS.fullmatch(header_length) or int(header_length) > len(body):
            raise _unreadable(f"{HEADER_LENGTH} is {header_length!r}, and {len(body)} bytes came")
        end = int(header_length)
    document = read_json_object(body[:end])
    if "error" in document:
        raise RequestFailed(Failure.ERROR, f"HTTP {status}: {document['error']}")
    listed = document.get("outputs")
    if not isinstance(listed, list):
        raise _unreadable("it has no list of outputs")
    outputs: dict[str, Array] = {}
    at = end
    for one in listed:
        name, dtype, shape = _head(one)
        if name in outputs:
            raise _unreadable(f"output {name!r} comes twice")
        size = (one.get("parameters") or {}).get("binary_data_size")
        if size is None:
            outputs[name] = _from_json(name, dtype, shape, one.get("data"))
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise _unreadable(f"output {name!r} has binary_data_size {size!r}")
        outputs[name] = _from_bytes(name, dtype, shape, body[at : at + size])
        at += size
    if at != len(body):
        raise _unreadable(f"its outputs take {at - end} bytes, and {len(body) - end} came")
    return Answer(
        outputs=outputs,
        model=_text(document, "model_name"),
        version=_text(document, "model_version"),
        request_id=_text(document, "id"),
    )


def read_grpc_answer(response: Any) -> Answer:
    """Read a `ModelInferResponse`.

    Raises:
        RequestFailed: It does not add up.
    """
    outputs: dict[str, Array] = {}
    raw = list(response.raw_output_contents)
    if raw and len(raw) != len(response.outputs):
        raise _unreadable(f"{len(response.outputs)} outputs, and {len(raw)} raw contents")
    for at, one in enumerate(response.outputs):
        name, dtype, shape = _head({"name": one.name, "datatype": one.datatype, "shape": list(one.shape)})
        if name in outputs:
            raise _unreadable(f"output {name!r} comes twice")
        if raw:
            outputs[name] = _from_bytes(name, dtype, shape, raw[at])
            continue
        contents = _GRPC_CONTENTS.get(one.datatype)
        if contents is None:
            raise _unreadable(f"output {name!r} has no raw contents, and {one.datatype} has no others")
        outputs[name] = _from_json(name, dtype, shape, list(getattr(one.contents, contents)))
    return Answer(outputs=outputs, model=response.model_name, version=response.model_version, request_id=response.id)


def read_json_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RequestFailed: It is none.
    """
    if not body:
        raise _unreadable("it is empty")
    try:
        document = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _unreadable(f"no JSON ({error}): {_shown(body)}") from None
    if not isinstance(document, dict):
        raise _unreadable(f"a JSON {type(document).__name__}, not an object: {_shown(body)}")
    return document


def error_text(body: bytes) -> str:
    """The server's own words of an error: `{"error": ...}`, or the body's beginning."""
    try:
        document = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        return _shown(body) or "no reason given"
    return str(document["error"]) if isinstance(document, dict) and "error" in document else _shown(body)


def _head(one: Any) -> tuple[str, str, tuple[int, ...]]:
    """Name, KServe type and shape of one output."""
    if not isinstance(one, dict):
        raise _unreadable(f"an output is {type(one).__name__}, not an object")
    name, dtype, shape = one.get("name"), one.get("datatype"), one.get("shape")
    if not isinstance(name, str):
        raise _unreadable(f"an output's name is {name!r}")
    if not isinstance(one.get("parameters"), dict | None):
        raise _unreadable(f"output {name!r} has parameters {one['parameters']!r}")
    if not isinstance(dtype, str) or (dtype not in _NUMPY and dtype != "BF16"):
        raise _unreadable(f"output {name!r} has type {dtype!r}")
    sizes = shape if isinstance(shape, list) else [None]
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in sizes):
        raise _unreadable(f"output {name!r} has shape {shape!r}")
    return name, str(dtype), tuple(sizes)


def _dtype(name: str) -> np.dtype[Any]:
    if name == "BF16":
        import ml_dtypes

        narrow: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return narrow
    return np.dtype(_NUMPY[name])


def _from_bytes(name: str, dtype: str, shape: tuple[int, ...], content: bytes) -> Array:
    kind = _dtype(dtype).newbyteorder("<") if dtype != "BF16" else _dtype(dtype)
    wanted = math.prod(shape) * kind.itemsize
    if len(content) != wanted:
        raise _unreadable(f"output {name!r} of {dtype} {list(shape)} takes {wanted} bytes, and {len(content)} came")
    return _shaped(np.frombuffer(content, dtype=kind), name, shape)


def _from_json(name: str, dtype: str, shape: tuple[int, ...], data: Any) -> Array:
    """Values that are written out, flat or nested."""
    if not isinstance(data, list):
        raise _unreadable(f"output {name!r} has no data")
    kind = _dtype(dtype)
    values = _flat(data)
    if len(values) != math.prod(shape):
        raise _unreadable(
            f"output {name!r} of {dtype} {list(shape)} takes {math.prod(shape)} values, and {len(values)} came"
        )
    allowed: tuple[type, ...] = {"b": (bool,), "i": (int,), "u": (int,)}.get(kind.kind, (int, float))
    for value in values:
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind.kind != "b"):
            raise _unreadable(f"output {name!r} of {dtype} holds {value!r}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=kind)
    except OverflowError:
        raise _unreadable(f"output {name!r} holds values beyond {dtype}") from None
    return _shaped(array, name, shape)


def _shaped(flat: Array, name: str, shape: tuple[int, ...]) -> Array:
    try:
        return flat.reshape(shape)
    except (ValueError, OverflowError):
        # More dimensions, or larger ones beside a 0, than numpy has.
        raise _unreadable(f"output {name!r} has shape {list(shape)}") from None


def _flat(data: list[Any]) -> list[Any]:
    if not any(isinstance(one, list) for one in data):
        return data
    flat: list[Any] = []
    pending = list(reversed(data))
    while pending:
        one = pending.pop()
        if isinstance(one, list):
            pending.extend(reversed(one))
        else:
            flat.append(one)
    return flat


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    return "" if value is None else str(value)


def _shown(body: bytes) -> str:
    text = " ".join(body[: 2 * _SHOWN].decode("utf-8", errors="replace").split())
    return repr(text[:_SHOWN]) if text else ""


def _unreadable(detail: str) -> RequestFailed:
    return RequestFailed(Failure.UNREADABLE, detail)
