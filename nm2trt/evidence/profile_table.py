"""The table of layer times in trtexec's log, under `=== Profile`: name first up to 8.5, name last from 8.6 on."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nm2trt.evidence.text import LogLine

_NUMBER = r"(?:[\d.]+(?:e[+-]?\d+)?|-?nan(?:\(ind\))?|-?inf)"
_MOST_BREAKS = 8
_MOST_ROWS = 200_000


@dataclass(frozen=True, slots=True)
class ProfiledLayer:
    """One layer of a profile."""

    name: str
    average_ms: float
    median_ms: float | None


class ProfileTable:
    """The rows under `=== Profile`, in both layouts."""

    def __init__(self, iterations: int, *, are_messages: bool) -> None:
        self.iterations = iterations
        self._are_messages = are_messages
        self.is_open = True
        self._row: re.Pattern[str] | None = None
        self._has_median = self._is_name_last = False
        self._rest: list[str] = []
        self._rows: list[tuple[str, float, float | None]] = []
        self._dropped = 0

    def feed(self, line: LogLine) -> None:
        """Take the next line; `is_open` turns False behind the last row."""
        text = line.text
        if self._are_messages and not line.is_message:
            # Somebody else's line in between.
            return
        if not text.strip():
            self.is_open = not self._rows
            return
        if self._row is None:
            self._header(text)
            return
        match = self._row.match(text)
        if match is None and self._rest_of_row(text):
            return
        if match is None or len(self._rows) >= _MOST_ROWS:
            self.is_open = False
            return
        if self._rest:
            # Only now it is certain that the table goes on behind it.
            self._rows[-1] = ("".join((self._rows[-1][0], *self._rest)), *self._rows[-1][1:])
            self._rest.clear()
        average, median = _ms(match["average"]), _ms(match["median"]) if self._has_median else None
        name = match["name"].strip()
        if average is None:
            self._dropped += 1
        else:
            self._rows.append((name, average, median))

    def _rest_of_row(self, text: str) -> bool:
        """Hold what may be the rest of a name that a terminal broke, in a table without the logger's prefix."""
        if not self._is_name_last or self._are_messages or not self._rows or len(self._rest) >= _MOST_BREAKS:
            return False
        self._rest.append(text)
        return True

    def _header(self, text: str) -> None:
        if "Layer" not in text or "Time" not in text:
            self.is_open = False
            return
        self._has_median = "Median" in text
        median = rf"\s+(?P<median>{_NUMBER})" if self._has_median else ""
        numbers = rf"(?P<time>{_NUMBER})\s+(?P<average>{_NUMBER}){median}\s+(?P<share>{_NUMBER})"
        self._is_name_last = last = text.rstrip().endswith("Layer")
        self._row = re.compile(rf"^\s*{numbers}\s+(?P<name>\S.*)$" if last else rf"^\s*(?P<name>\S.*?)\s+{numbers}\s*$")

    def finish(self) -> tuple[tuple[ProfiledLayer, ...], int]:
        """The layers without the line of totals, and how many did not run."""
        rows = self._rows[:-1] if self._rows and self._rows[-1][0] == "Total" else self._rows
        return tuple(ProfiledLayer(*row) for row in rows), self._dropped


def _ms(text: str) -> float | None:
    try:
        value = float(text.replace("(ind)", ""))
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None
