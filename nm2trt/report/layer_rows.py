"""Pictures with a row for each layer, first on top: how high they are, and how their rows are named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nm2trt.report.figure import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_IN = 9.0
_MOST_NAMED = 200
_MOST_HEIGHT_IN = 40.0
_LONGEST_NAME = 44


def are_named(rows: int) -> bool:
    """Whether so many rows still have room for their names."""
    return rows <= _MOST_NAMED


def height_of_rows(rows: int, named_in: float, unnamed_in: float) -> float:
    """Height of the picture in inches.

    Args:
        rows: How many there are.
        named_in: Height of a row with its name, in inches.
        unnamed_in: Height of a row without, in inches.
    """
    return min(1.3 + (named_in if are_named(rows) else unnamed_in) * max(rows, 6), _MOST_HEIGHT_IN)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Set the vertical axis: the first row on top, each with its name where there is room."""
    axes.set_ylim(len(names) - 0.4, -0.6)
    if are_named(len(names)):
        axes.set_yticks(range(len(names)), [short_name(name) for name in names], fontsize=6.5, color=INK)
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(names)} layers, first on top")


def short_name(name: str) -> str:
    """Cut the start of a long name: its end tells layers apart."""
    return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :]
