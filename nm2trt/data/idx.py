"""Reader of the idx format (LeCun, MNIST), gzipped or not."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import InputError

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path) -> NDArray[Any]:
    """Read one idx file.

    Returns:
        Array of the file's own dtype in native byte order; images are [N, H, W], labels [N].

    Raises:
        InputError: The file is missing, truncated, over-long, or no idx file.
    """
    hint = "fetch the file again"
    try:
        raw = path.read_bytes()
        if raw[:2] == _GZIP_MAGIC:
            raw = gzip.decompress(raw)
    except FileNotFoundError:
        raise InputError("is missing", where=path, hint=hint) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot be read: {error}", where=path, hint=hint) from None
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _DTYPES:
        raise InputError("is no idx file", where=path, hint=hint)
    dtype, rank = np.dtype(_DTYPES[raw[2]]), raw[3]
    offset = 4 + 4 * rank
    if len(raw) < offset:
        raise InputError(f"is truncated inside its header of {offset} bytes", where=path, hint=hint)
    shape = struct.unpack(f">{rank}I", raw[4:offset])
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) - offset != expected:
        raise InputError(
            f"header promises {expected} bytes of data, the file has {len(raw) - offset}",
            where=path,
            hint=hint,
        )
    array = np.frombuffer(raw, dtype=dtype, offset=offset).reshape(shape)
    return array.astype(dtype.newbyteorder("="))
