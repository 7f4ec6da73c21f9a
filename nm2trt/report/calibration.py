"""A picture of activation ranges: what INT8 reaches in each tensor, against what was seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D

from nm2trt.artifacts.calibration import CalibrationDocument
from nm2trt.artifacts.files import write_atomic
from nm2trt.report.figure import ACCENT, DENSE, INK, MUTED, SPARSE, house_style, new_figure, note, png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW_IN = 0.2
_MOST_NAMED = 120
_LONGEST_NAME = 34
_CLIPPED = 1e-3
"""Tensors that lose a larger share of their values than this are marked."""


def write_ranges_png(document: CalibrationDocument, path: Path) -> None:
    """Write the picture, atomically."""
    write_atomic(path, png_bytes(ranges_figure(document)))


def ranges_figure(document: CalibrationDocument) -> Figure:
    """Draw each tensor as the span that was seen (thin) and the magnitude that INT8 reaches (thick), on a log axis."""
    tensors = document.tensors
    named = len(tensors) <= _MOST_NAMED
    with house_style():
        figure = new_figure(8.5, min(1.6 + (_ROW_IN if named else 0.05) * max(len(tensors), 4), 40.0))
        axes = figure.subplots()
        axes.set_title(f"{document.output.name}: what INT8 reaches, {document.method}, {document.samples} samples")
        if tensors:
            _draw(axes, document, named=named)
        else:
            note(axes, "no tensor was quantized")
    return figure


def _draw(axes: Axes, document: CalibrationDocument, *, named: bool) -> None:
    rows = np.arange(len(document.tensors))
    reach = np.array([tensor.reach for tensor in document.tensors])
    seen = np.array(
        [
            max(abs(tensor.smallest), abs(tensor.largest))
            if tensor.smallest is not None and tensor.largest is not None
            else np.nan
            for tensor in document.tensors
        ]
    )
    clips = [(tensor.clipped_share or 0.0) > _CLIPPED for tensor in document.tensors]
    colors = [ACCENT if clip else SPARSE for clip in clips]
    axes.set_xscale("log")
    floor = float(np.nanmin([reach.min(), np.nanmin(seen) if np.isfinite(seen).any() else reach.min()])) / 3
    axes.hlines(rows, floor, reach, color=colors, linewidth=4 if named else 1.5)
    axes.hlines(rows, reach, np.where(np.isfinite(seen), np.maximum(seen, reach), reach), color=DENSE, linewidth=1)
    axes.plot(seen, rows, "|", color=INK, markersize=6 if named else 2)
    axes.set_xlim(left=floor)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("magnitude")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    if named:
        axes.set_yticks(rows, [_short(tensor.tensor) for tensor in document.tensors], fontsize=6.5)
        for row, tensor in zip(rows, document.tensors, strict=True):
            if tensor.clipped_share:
                axes.text(
                    1.01,
                    float(row),
                    f"{tensor.clipped_share:.2%} clipped" if tensor.clipped_share >= 1e-4 else "< 0.01% clipped",
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    fontsize=6.5,
                    color=ACCENT if tensor.clipped_share > _CLIPPED else MUTED,
                )
    else:
        axes.set_yticks([])
    axes.legend(
        handles=[
            Line2D([], [], color=SPARSE, linewidth=4, label="INT8 reaches"),
            Line2D([], [], color=ACCENT, linewidth=4, label="and clips more than 0.1 % of the values"),
            Line2D([], [], color=INK, marker="|", linestyle="", label="largest magnitude seen"),
        ],
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=3,
    )
    axes.set_title(axes.get_title(loc="left"), loc="left", pad=26)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :]
