"""A picture of a checked file: one bar per layer, cut by how many non-zeros its groups hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch

from nm2trt.artifacts.files import write_atomic
from nm2trt.report.figure import ACCENT, INK, MUTED, SPARSE, house_style, new_figure, note, png_bytes
from nm2trt.report.layer_rows import WIDTH_IN, are_named, height_of_rows, name_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW_IN = 0.17
_UNNAMED_ROW_IN = 0.03
_MOST_IN_LEGEND = 9


@dataclass(frozen=True, slots=True)
class SparsityRow:
    """One layer."""

    name: str
    n: int
    """Non-zeros that its pattern allows in a group."""
    groups: Sequence[int]
    """[M + 1]: groups with 0, 1, ... M non-zeros."""
    verdict: str
    bad: bool
    """The verdict fails the file."""


def write_sparsity_png(rows: Sequence[SparsityRow], path: Path, title: str) -> None:
    """Write the picture, atomically."""
    write_atomic(path, png_bytes(sparsity_figure(rows, title)))


def sparsity_figure(rows: Sequence[SparsityRow], title: str) -> Figure:
    """Draw the layers in file order from the top; 200 and more lose their names, and none gets a page of its own."""
    named = are_named(len(rows))
    height_in = height_of_rows(len(rows), _ROW_IN, _UNNAMED_ROW_IN)
    with house_style():
        figure = new_figure(WIDTH_IN, height_in)
        axes = figure.subplots()
        axes.set_title(title)
        if rows:
            _bars(axes, rows, named=named)
            _legend(axes, rows, height_in)
        else:
            note(axes, "no layer could be counted")
    return figure


def _bars(axes: Axes, rows: Sequence[SparsityRow], *, named: bool) -> None:
    height = 0.78 if named else 1.0
    for at, row in enumerate(rows):
        total = max(sum(row.groups), 1)
        shares = np.asarray(row.groups, float) / total
        lefts = np.concatenate(([0.0], np.cumsum(shares)[:-1]))
        colors = [_color(nonzeros, row) for nonzeros in range(len(row.groups))]
        # One collection for each layer: a bar of its own for each share takes eight times as long.
        axes.broken_barh(list(zip(lefts, shares, strict=True)), (at - height / 2, height), facecolors=colors)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the layer's groups")
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.grid(visible=False)
    name_rows(axes, [row.name for row in rows])
    if named:
        for at, row in enumerate(rows):
            axes.text(
                1.01, at, row.verdict, va="center", fontsize=6.5, color=ACCENT if row.bad else MUTED, clip_on=False
            )
        for label, row in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_color(ACCENT if row.bad else INK)


def _legend(axes: Axes, rows: Sequence[SparsityRow], height_in: float) -> None:
    """For the pattern of most layers; the colors of others are cut the same way."""
    (n, size), _ = Counter((row.n, len(row.groups)) for row in rows).most_common(1)[0]
    typical = next(row for row in rows if (row.n, len(row.groups)) == (n, size))
    counts = list(range(size))
    if size > _MOST_IN_LEGEND:
        counts = [0, n, n + 1, size - 1]
    patches = [
        Patch(color=_color(nonzeros, typical), label=f"{nonzeros} of {size - 1} not zero") for nonzeros in counts
    ]
    axes.legend(
        handles=patches,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.62 / height_in),
        ncols=min(len(patches), 5),
    )


def _color(nonzeros: int, row: SparsityRow) -> tuple[float, float, float, float]:
    """Green where the group is legal, the darker the more zeros; orange where it is not, the darker the fewer."""
    if nonzeros <= row.n:
        red, green, blue, _ = to_rgba(SPARSE)
        strength = 1.0 - 0.6 * nonzeros / row.n
    else:
        red, green, blue, _ = to_rgba(ACCENT)
        most = len(row.groups) - 1
        strength = 0.45 + 0.55 * (nonzeros - row.n) / max(most - row.n, 1)
    return red, green, blue, strength
