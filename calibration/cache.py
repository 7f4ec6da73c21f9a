"""Calibration caches of TensorRT 7 to 10, which TensorRT 11 no longer writes or reads.

A text file. The first line is like `TRT-8601-EntropyCalibration2`; each following one is `TENSOR: HEX`, the four bytes
of a float32, most significant first: the tensor's scale, its range over 127.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

from nm2trt.errors import InputError

_HEADER = re.compile(r"TRT-\d+-\w+")
_ENTRY = re.compile(r"(?P<tensor>.+): (?P<bits>[0-9a-fA-F]{1,8})")
_HINT = "pass the file that an IInt8Calibrator wrote (write_calibration_cache)"


def read_cache(path: Path) -> dict[str, float]:
    """Read the scale of every tensor.

    Raises:
        InputError: The file is missing or no such cache, or a scale is no positive number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError("no such file", where=path, hint="check the path of --cache") from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise InputError("is no calibration cache of TensorRT", where=path, hint=_HINT) from None
    if not lines or not _HEADER.fullmatch(lines[0].strip()):
        raise InputError("does not begin like TRT-8601-EntropyCalibration2", where=path, hint=_HINT)
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        match = _ENTRY.fullmatch(line.strip())
        if match is None:
            raise InputError(f"line {number} is not TENSOR: HEX: {line[:60]!r}", where=path, hint=_HINT)
        scale = struct.unpack(">f", bytes.fromhex(match["bits"].zfill(8)))[0]
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(
                f"line {number}: the scale of {match['tensor']!r} is {scale:g}", where=path, hint="calibrate anew"
            )
        scales[match["tensor"]] = float(scale)
    if not scales:
        raise InputError("holds no scale", where=path, hint=_HINT)
    return scales
