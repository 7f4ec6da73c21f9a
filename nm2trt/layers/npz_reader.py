"""Layers of an .npz archive; objects in it, which are pickles, are never loaded."""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.layers.checkpoint import StoredTensor, layers_of, neighbors_of
from nm2trt.layers.stream import LayerSource
from nm2trt.library_errors import one_line

_HINT = "save it again with numpy.savez, without objects"
_BROKEN = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    ValueError,
    TypeError,
    SyntaxError,
    EOFError,
    OSError,
    LookupError,
    OverflowError,
    RuntimeError,
)
"""What zipfile, its decompressors and numpy's header parser raise; encrypted members are a RuntimeError."""


def open_npz(path: Path) -> LayerSource:
    """Open an .npz file.

    Raises:
        InputError: It is no archive of plain arrays, truncated, or a header lies about its data.
    """
    tensors = npz_tensors(path)
    return LayerSource(path=path, kind="checkpoint", layers=partial(layers_of, tensors, neighbors_of(tensors)))


def npz_tensors(path: Path) -> list[StoredTensor]:
    """List the arrays of an .npz file; errors as `open_npz`."""
    tensors = []
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.filename.endswith(".npy"):
                    continue
                with archive.open(info) as file:
                    shape, dtype = _header(file)
                    size = math.prod(shape) * dtype.itemsize + file.tell()
                if dtype.hasobject or size != info.file_size:
                    what = "holds objects" if dtype.hasobject else f"of shape {list(shape)} lies about its size"
                    raise InputError(f"array {info.filename!r} {what}", where=path, hint=_HINT)
                name = info.filename.removesuffix(".npy")
                tensors.append(StoredTensor(name, shape, dtype.name, partial(_read, path, info.filename)))
    except _BROKEN as error:
        raise InputError(f"is no complete npz file: {one_line(error)}", where=path, hint=_HINT) from None
    return tensors


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy_format.read_magic(file)
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _read(path: Path, member: str) -> NDArray[Any]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            return np.asarray(npy_format.read_array(file, allow_pickle=False))
    except _BROKEN as error:
        raise InputError(f"array {member!r} cannot be read: {one_line(error)}", where=path, hint=_HINT) from None
