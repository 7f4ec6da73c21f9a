"""Reads a build log or an inspector file, whatever the file is called, by what it holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from nm2trt.errors import InputError
from nm2trt.evidence.inspector import Inspection, parse_inspection
from nm2trt.evidence.log import BuildLog
from nm2trt.evidence.recognize import FileKind, recognize
from nm2trt.evidence.text import normalize, read_lines
from nm2trt.evidence.trtexec_log import read_trtexec_log

_HINT = "write one with `trtexec --profilingVerbosity=detailed --dumpLayerInfo --exportLayerInfo=F.json`"


def read_inspection(path: Path) -> Inspection:
    """Read the layers of an engine, whatever the file is called.

    Raises:
        InputError: The file is missing, broken, or another one of TensorRT's files; the line says which.
    """
    content = recognize(path)
    if content.kind is FileKind.LAYERS:
        found = parse_inspection(content.raw, where=path)
        if not found.layers:
            raise InputError("lists no layer", where=path, hint=_HINT)
        return replace(found, notes=(*found.notes, *content.notes))
    if content.kind is FileKind.LOG:
        layers = read_log(path).layers
        if layers:
            detailed = any(layer.type for layer in layers)
            return Inspection(layers=layers, detailed=detailed, notes=("layers are those that the log prints",))
        raise InputError(
            "is a log that prints no layers, not a layer file", where=path, hint=f"give it with --log, or {_HINT}"
        )
    raise content.refuse("a layer file", _HINT)


def read_log(path: Path) -> BuildLog:
    """Read a build log, line by line; of several builds in one file, the last.

    Raises:
        InputError: The file is missing or no log; the line says what it is.
    """
    content = recognize(path)
    if content.kind is not FileKind.LOG:
        raise content.refuse("a log", _hint(content.kind))
    return read_trtexec_log(content.lines()).build


def read_builder_log(path: Path) -> BuildLog:
    """Read the log of a build of nm2trt's own: a log whatever it holds, also nothing.

    Raises:
        InputError: The file is missing or no text.
    """
    return read_trtexec_log(read_lines(path)).build


def _hint(kind: FileKind) -> str:
    if kind is FileKind.LAYERS:
        return "give it with --layers"
    if kind in (FileKind.PROFILE, FileKind.TIMES):
        return "nm2trt profile reads it"
    return "give the output of trtexec --verbose, or of the builder's logger"


def parse_log(lines: Iterable[str]) -> BuildLog:
    """Read a build log; never fails, whatever the text."""
    return read_trtexec_log(normalize(lines)).build
