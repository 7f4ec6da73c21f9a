"""A table of layer times in two engines, as people write them down: CSV, a row for each layer."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nm2trt.errors import InputError
from nm2trt.evidence.text_files import open_text

REQUIRED = ("layer", "dense_engine_ms", "sparse_engine_ms")
OPTIONAL = ("sparse_kernel_chosen", "c_in", "c_out", "kernel", "stride", "out_h_w")
_HINT = f"give the columns {', '.join(REQUIRED)}; and, if known, {', '.join(OPTIONAL)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One layer; what the table does not hold is None."""

    name: str
    dense_ms: float
    sparse_ms: float
    chosen: bool | None
    c_in: int | None = None
    c_out: int | None = None
    kernel: int | None = None
    out_size: int | None = None
    """Height of the output, which is its width."""

    def flops(self, batch: int) -> int | None:
        """Of a convolution on `batch` samples; two for each multiply-add."""
        if self.c_in is None or self.c_out is None or self.kernel is None or self.out_size is None:
            return None
        return 2 * batch * self.out_size**2 * self.c_in * self.c_out * self.kernel**2


def read_layer_table(path: Path) -> list[TableRow]:
    """Read the table.

    Raises:
        InputError: The file is missing, lacks a column, or holds no row; or a cell is no number, named by line and
            column.
    """
    try:
        with open_text(path) as file:
            reader = csv.DictReader(file, delimiter=_delimiter(file))
            missing = [name for name in REQUIRED if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"no column {', '.join(missing)}", where=path, hint=_HINT)
            rows = [_row(cells, reader.line_num, path) for cells in reader]
    except csv.Error as error:
        raise InputError(f"no readable CSV: {error}", where=path, hint=_HINT) from None
    if not rows:
        raise InputError("holds no layer", where=path, hint=_HINT)
    return rows


def _delimiter(file: IO[str]) -> str:
    """A spreadsheet in many languages writes semicolons, and copies tabs."""
    first = file.readline()
    file.seek(0)
    return max(",;\t", key=first.count)


def _row(cells: dict[str, str | None], line: int, path: Path) -> TableRow:
    chosen = cells.get("sparse_kernel_chosen") or ""
    if chosen not in ("", "0", "1"):
        raise InputError(f"line {line}: sparse_kernel_chosen is {chosen!r}, not 0 or 1", where=path)
    return TableRow(
        name=cells.get("layer") or f"line {line}",
        dense_ms=_time(cells, "dense_engine_ms", line, path),
        sparse_ms=_time(cells, "sparse_engine_ms", line, path),
        chosen=None if not chosen else chosen == "1",
        c_in=_count(cells, "c_in", line, path),
        c_out=_count(cells, "c_out", line, path),
        kernel=_count(cells, "kernel", line, path),
        out_size=_count(cells, "out_h_w", line, path),
    )


def _time(cells: dict[str, str | None], column: str, line: int, path: Path) -> float:
    try:
        value = float(cells.get(column) or "")
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise InputError(f"line {line}: {column} is {cells.get(column)!r}, no time in ms", where=path)
    return value


def _count(cells: dict[str, str | None], column: str, line: int, path: Path) -> int | None:
    text = (cells.get(column) or "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text) > 0):
        raise InputError(f"line {line}: {column} is {text!r}, no positive whole number", where=path)
    return int(text)
