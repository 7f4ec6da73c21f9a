"""Tensors of an ONNX file: what their data must look like, checked before memory is taken, and their values."""

from __future__ import annotations

import math
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.library_errors import one_line
from nm2trt.onnx_tools.lazy_file import FileRange, raw_range

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[Any]
UNREADABLE = (TypeError, ValueError, LookupError, OverflowError)
"""What numpy, protobuf and onnx-ir raise where an attribute or a shape makes no sense."""

_HINT = "export the model again"
_EXTERNAL = onnx.TensorProto.EXTERNAL

_NUMPY: dict[int, type[Any]] = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    12: np.uint32,
    13: np.uint64,
    14: np.complex64,
    15: np.complex128,
    16: ml_dtypes.bfloat16,
    17: ml_dtypes.float8_e4m3fn,
    18: ml_dtypes.float8_e4m3fnuz,
    19: ml_dtypes.float8_e5m2,
    20: ml_dtypes.float8_e5m2fnuz,
    21: ml_dtypes.uint4,
    22: ml_dtypes.int4,
    23: ml_dtypes.float4_e2m1fn,
    24: ml_dtypes.float8_e8m0fnu,
}
"""TensorProto.DataType -> type of one value in memory."""
_PACKED_BITS = {21: 4, 22: 4, 23: 4}
"""Types that share a byte in the file."""
_TYPED_FIELDS = {1: "float_data", 7: "int64_data", 11: "double_data", 12: "uint64_data", 13: "uint64_data"} | {
    14: "float_data",
    15: "double_data",
}
"""Where values lie that are not in raw_data; all other types are in int32_data, as their bits where they are floats."""


def numpy_dtype(data_type: int) -> np.dtype[Any]:
    """Type of a TensorProto.DataType.

    Raises:
        ValueError: It holds no numbers, or is not known.
    """
    known = _NUMPY.get(data_type)
    if known is None:
        raise ValueError(f"tensor type {data_type} is not supported")
    dtype: np.dtype[Any] = np.dtype(known)
    return dtype


class StoredConstant:
    """A tensor of a graph with its data where they were found: in the message, in the model's file or beside it."""

    def __init__(self, proto: onnx.TensorProto, where: Path, name: str = "") -> None:
        self.proto = proto
        self.name = name or proto.name
        self.shape: tuple[int, ...] = tuple(proto.dims)
        self.known = proto.data_type in _NUMPY
        self._where = where
        self._range = raw_range(proto, where)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of one value in memory."""
        return numpy_dtype(self.proto.data_type)

    def check(self) -> None:
        """Compare the data with the shape without loading anything.

        Raises:
            InputError: A dimension is negative, the data are shorter or longer than the shape says, or external data
                are missing or outside the model's folder.
        """
        if any(size < 0 for size in self.shape):
            raise self._error(f"shape {list(self.shape)} has a negative size")
        if self.proto.data_location == _EXTERNAL:
            self._external()
            return
        if self._range is not None or self.proto.HasField("raw_data"):
            found = len(self.proto.raw_data) if self._range is None else self._range.size_bytes
            expected, unit = self._size_bytes(), "bytes"
        else:
            found, expected, unit = len(self._typed()), self._typed_count(), "values"
        if found != expected:
            raise self._error(f"shape {list(self.shape)} needs {expected} {unit}, the file holds {found}")

    def load(self) -> Array:
        """Read the values; errors as `check`, and where the file changed under way."""
        self.check()
        place = self._place()
        if place is not None:
            raw = self._read(place)
        elif self.proto.HasField("raw_data"):
            raw = np.frombuffer(self.proto.raw_data, np.uint8)
        else:
            raw = self._typed_bytes()
        bits = _PACKED_BITS.get(self.proto.data_type)
        if bits is None:
            return raw.view(self.dtype.newbyteorder("<")).astype(self.dtype, copy=False).reshape(self.shape)
        return _unpacked(raw, math.prod(self.shape), self.dtype).reshape(self.shape)

    @property
    def in_ranges(self) -> bool:
        """Whether `load_range` works: the data lie in a file, each value in bytes of its own."""
        external = self.proto.data_location == _EXTERNAL
        return (external or self._range is not None) and self.proto.data_type not in _PACKED_BITS

    def load_range(self, start: int, stop: int) -> Array:
        """Read values `start` to before `stop`, in memory order and flat; errors as `load`."""
        place = self._place()
        assert place is not None
        size = self.dtype.itemsize
        part = FileRange(place.path, place.start + start * size, (stop - start) * size)
        return self._read(part).view(self.dtype.newbyteorder("<")).astype(self.dtype, copy=False)

    def _place(self) -> FileRange | None:
        return self._external() if self.proto.data_location == _EXTERNAL else self._range

    def _external(self) -> FileRange:
        entries = {entry.key: entry.value for entry in self.proto.external_data}
        location = entries.get("location", "")
        if is_absolute_location(location):
            raise absolute_location_error(location, self._where, f"tensor {self.name!r}")
        # ".." leaves the folder, which is caught below.
        inside = self._where.parent.resolve()
        file = inside / location
        try:
            is_inside, found = file.resolve().is_relative_to(inside), file.is_file()
        except (OSError, ValueError, RuntimeError):
            # A name that no file can have, or links in a circle.
            is_inside, found = True, False
        if not location or not is_inside:
            raise self._error(
                f"its external data {location[:200]!r} lie outside the model's folder",
                hint="move the data file next to the model",
            )
        if not found:
            raise self._error(f"its external data file {location[:200]!r} is missing", hint="copy it next to the model")
        expected = self._size_bytes()
        start, length = self._offset(entries, "offset", 0), self._offset(entries, "length", expected)
        if start < 0 or (length or expected) < expected or start + expected > file.stat().st_size:
            raise self._error(f"{expected} bytes at {start} do not lie in {location!r}")
        return FileRange(file, start, expected)

    def _offset(self, entries: dict[str, str], key: str, default: int) -> int:
        text = entries.get(key, "")
        if text and not (text.isascii() and text.removeprefix("-").isdigit() and len(text) < 20):
            raise self._error(f"the {key} of its external data is {text[:40]!r}")
        return int(text) if text else default

    def _read(self, place: FileRange) -> NDArray[np.uint8]:
        try:
            raw = read_bytes(place)
        except OSError as error:
            raise self._error(f"cannot be read: {error.strerror}") from None
        if len(raw) != place.size_bytes:
            raise self._error("the file ends inside it")
        return np.frombuffer(raw, np.uint8)

    def _size_bytes(self) -> int:
        bits: int = _PACKED_BITS.get(self.proto.data_type, 8 * self.dtype.itemsize)
        return math.ceil(math.prod(self.shape) * bits / 8)

    def _typed(self) -> Any:
        return getattr(self.proto, _TYPED_FIELDS.get(self.proto.data_type, "int32_data"))

    def _typed_count(self) -> int:
        if self.proto.data_type in _PACKED_BITS:
            return self._size_bytes()
        return math.prod(self.shape) * (2 if self.dtype.kind == "c" else 1)

    def _typed_bytes(self) -> NDArray[np.uint8]:
        values = np.asarray(self._typed())
        if self.dtype.kind == "c":
            kind: Any = np.float32 if self.dtype.itemsize == 8 else np.float64
        elif self.proto.data_type in _PACKED_BITS:
            kind = np.uint8
        elif self.proto.data_type in _TYPED_FIELDS:
            kind = self.dtype
        else:
            # int32_data holds the bits of small floats and the values of small integers: both are the low bits.
            kind = np.dtype(f"u{self.dtype.itemsize}")
        return np.ascontiguousarray(values.astype(kind)).view(np.uint8)

    def _error(self, what: str, hint: str = _HINT) -> InputError:
        return InputError(f"tensor {self.name!r}: {what}", where=self._where, hint=hint)


def is_absolute_location(location: str) -> bool:
    """Whether external data are named by an absolute path, of any system."""
    return PurePosixPath(location).is_absolute() or bool(PureWindowsPath(location).anchor)


def absolute_location_error(location: str, model: Path, subject: str = "a tensor") -> InputError:
    """ONNX wants locations relative to the model, and ONNX Runtime refuses others."""
    name = re.split(r"[\\/]", location)[-1]
    return InputError(
        f"{subject}: its external data have the absolute location {location[:200]!r}, which ONNX does not allow",
        where=model,
        hint=f"put the data next to the model and set the location to {name!r} "
        "(onnx.external_data_helper.set_external_data)",
    )


def find_external_file(location: str, model: Path) -> Path:
    """Find the file that a model names for external data.

    Raises:
        InputError: The name is absolute, or the file is missing or outside the model's folder.
    """
    if is_absolute_location(location):
        raise absolute_location_error(location, model)
    file = model.parent / location
    if not file.resolve().is_relative_to(model.parent.resolve()) or not file.is_file():
        raise InputError(
            f"external data {location!r} are missing or lie outside the model's folder",
            where=model,
            hint="put the data file next to the model",
        )
    return file


def read_bytes(place: FileRange) -> bytes:
    """Read bytes of a file; fewer where the file ends."""
    with place.path.open("rb", buffering=0) as file:
        file.seek(place.start)
        return file.read(place.size_bytes) or b""


def _unpacked(raw: NDArray[np.uint8], count: int, dtype: np.dtype[Any]) -> Array:
    """Two values a byte, the first in the low half."""
    halves = np.stack([raw & 0xF, raw >> 4], axis=-1).reshape(-1)[:count]
    if dtype.name == "int4":
        return ((halves.astype(np.int8) ^ 8) - 8).astype(dtype)
    return halves.astype(dtype) if dtype.name == "uint4" else halves.view(dtype)


def as_text(name: str | bytes) -> str:
    """A name as text; protobuf gives bytes where a file's string is no UTF-8."""
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name


def stored_constant(tensor: ir.TensorProtocol | StoredConstant, where: Path) -> StoredConstant | None:
    """The tensor behind onnx-ir's view of it; None for tensors that onnx-ir made itself."""
    if isinstance(tensor, StoredConstant):
        return tensor
    import onnx_ir as ir

    if isinstance(tensor, ir.serde.TensorProtoTensor):
        return StoredConstant(tensor.raw, where)
    if not isinstance(tensor, ir.ExternalTensor):
        return None
    proto = onnx.TensorProto(
        name=tensor.name or "", data_type=int(tensor.dtype), dims=tensor.shape.numpy(), data_location=_EXTERNAL
    )
    proto.external_data.add(key="location", value=str(tensor.location))
    for key, value in (("offset", tensor.offset), ("length", tensor.length)):
        if value is not None:
            proto.external_data.add(key=key, value=str(value))
    return StoredConstant(proto, where)


def check_tensor(tensor: ir.TensorProtocol | StoredConstant, where: Path) -> None:
    """As `StoredConstant.check`, for tensors of onnx-ir, too."""
    stored = stored_constant(tensor, where)
    if stored is not None:
        stored.check()


def load_tensor(tensor: ir.TensorProtocol | StoredConstant, where: Path) -> Array:
    """Read a tensor's values.

    Raises:
        InputError: They cannot be read.
    """
    stored = stored_constant(tensor, where)
    try:
        return np.asarray(tensor.numpy()) if stored is None else stored.load()  # type: ignore[union-attr]
    except (*UNREADABLE, AssertionError, OSError) as error:
        raise InputError(f"tensor {tensor.name!r} cannot be read: {one_line(error)}", where=where) from None
