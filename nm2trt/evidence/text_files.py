"""Opens text files whatever their packing and encoding; says what a file is that holds no text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from nm2trt.errors import InputError

LONGEST_LINE = 1 << 20
"""Characters; a longer line comes in pieces, so that a file without line ends stays out of memory."""
_NESTED = 4
"""Packings within one another."""
_OPENERS: tuple[tuple[bytes, Callable[..., Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\x00", lzma.open),
)
_ARCHIVES = ((b"PK\x03\x04", "a zip archive"), (b"\x28\xb5\x2f\xfd", "packed by zstd"), (b"7z\xbc\xaf", "a 7z archive"))


def open_text(path: Path) -> IO[str]:
    """Open a text file, whatever its packing and encoding; undecodable bytes become U+FFFD.

    Raises:
        InputError: Missing, a folder, not readable, an archive, or a binary file.
    """
    binary = _open_binary(path)
    head = binary.peek(4096)[:4096]
    encoding = _encoding(head)
    if encoding is None:
        binary.close()
        raise InputError(f"is no text: {describe_binary(head)}", where=path, hint="give the log or JSON file")
    return io.TextIOWrapper(binary, encoding=encoding, errors="replace", newline=None)


def _open_binary(path: Path) -> io.BufferedReader:
    try:
        file: Any = path.open("rb")
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except IsADirectoryError:
        raise InputError("is a folder; give one file", where=path) from None
    except OSError as error:
        raise InputError(f"cannot be opened: {error.strerror}", where=path) from None
    for _ in range(_NESTED):
        head = _peek(file, path)
        for magic, what in _ARCHIVES:
            if head.startswith(magic):
                raise InputError(f"is {what}", where=path, hint="unpack it first")
        factory = next((factory for magic, factory in _OPENERS if head.startswith(magic)), None)
        if factory is None:
            break
        file = io.BufferedReader(factory(file, "rb"))
    _peek(file, path)
    return file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)


def _peek(file: Any, path: Path) -> bytes:
    try:
        return bytes(file.peek(4096)[:4096])
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"cannot be unpacked: {error}", where=path, hint="copy it again") from None


def _encoding(head: bytes) -> str | None:
    """The text encoding that the first bytes show; None for a binary file."""
    for bom, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if head.startswith(bom):
            return name
    even, odd = head[0::2], head[1::2]
    if odd and odd.count(0) > 0.6 * len(odd) and even.count(0) < 0.05 * len(even) + 1:
        return "utf-16-le"
    if even and even.count(0) > 0.6 * len(even) and odd.count(0) < 0.05 * len(odd) + 1:
        return "utf-16-be"
    control = sum(byte < 9 or 13 < byte < 27 for byte in head)
    if head.count(0) > 2 or control > 0.1 * len(head):
        return None
    return "utf-8"


def describe_binary(head: bytes) -> str:
    """What a binary file is, by its first bytes."""
    for magic, what in (
        (b"\x7fELF", "a program or library"),
        (b"MZ", "a Windows program or library"),
        (b"ptrt", "a TensorRT engine (plan)"),
        (b"ftrt", "a TensorRT engine (plan)"),
        (b"\x89PNG", "a picture"),
        (b"SQLite", "a database"),
    ):
        if head.startswith(magic):
            return what
    return "an ONNX file" if b"pytorch" in head[:64] or b"ir_version" in head[:64] else "a binary file"


def physical_lines(path: Path) -> Iterator[str]:
    """Lines of a text file without their ends; an overlong one comes in pieces.

    Raises:
        InputError: See `open_text`; or the packing ends early.
    """
    with open_text(path) as file:
        try:
            while line := file.readline(LONGEST_LINE):
                yield line[:-1] if line.endswith("\n") else line
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise InputError(f"cannot be unpacked to its end: {error}", where=path, hint="copy it again") from None
