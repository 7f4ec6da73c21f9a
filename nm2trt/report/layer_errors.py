"""A picture of what pruning with data does to every layer's output, beside what magnitude alone would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nm2trt.artifacts.files import write_atomic
from nm2trt.report.figure import MUTED, SPARSE, house_style, new_figure, note, png_bytes
from nm2trt.report.layer_rows import WIDTH_IN, height_of_rows, name_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW_IN = 0.24
_UNNAMED_ROW_IN = 0.04


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One layer; errors are shares of its dense output's energy."""

    name: str
    error: float
    magnitude_error: float


def write_errors_png(rows: Sequence[ErrorRow], path: Path, title: str) -> None:
    """Write the picture, atomically."""
    write_atomic(path, png_bytes(errors_figure(rows, title)))


def errors_figure(rows: Sequence[ErrorRow], title: str) -> Figure:
    """Draw the layers in the network's order from the top; 200 and more lose their names."""
    with house_style():
        figure = new_figure(WIDTH_IN, height_of_rows(len(rows), _ROW_IN, _UNNAMED_ROW_IN))
        axes = figure.subplots()
        axes.set_title(title)
        if not rows:
            note(axes, "no layer was pruned with data")
            return figure
        at = np.arange(len(rows))
        axes.barh(at - 0.2, [100 * row.error for row in rows], height=0.38, color=SPARSE, label="as written")
        axes.barh(at + 0.2, [100 * row.magnitude_error for row in rows], height=0.38, color=MUTED, label="by magnitude")
        axes.set_xlim(left=0)
        axes.set_xlabel("squared output error, % of the dense output's energy")
        name_rows(axes, [row.name for row in rows])
        axes.legend(loc="lower right")
    return figure
