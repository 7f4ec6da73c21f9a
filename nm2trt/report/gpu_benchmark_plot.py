"""Where 2:4 wins: a map of dense over sparse for every product, a panel for each dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nm2trt.report.figure import house_style, new_figure

_REACH = 1.0
"""Of the color scale, in powers of two: from half as fast to twice as fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapCell:
    """One product."""

    panel: str
    """Dtype."""
    m: int
    n: int
    k: int
    ratio: float
    """Dense over sparse."""
    beyond_noise: bool


def write_map(cells: Sequence[MapCell], path: Path, *, title: str) -> None:
    """Draw rows of weights against columns of M; bold figures lie beyond the noise."""
    panels = list(dict.fromkeys(cell.panel for cell in cells)) or [""]
    weights = sorted({(cell.n, cell.k) for cell in cells}, key=lambda size: size[0] * size[1])
    rows = sorted({cell.m for cell in cells})
    with house_style():
        figure = new_figure(1.4 + 3.4 * len(panels), 1.4 + 0.3 * max(1, len(weights)))
        figure.suptitle(title)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, one in zip(panels, axes, strict=True):
            values = np.full((len(weights), len(rows)), np.nan)
            for cell in cells:
                if cell.panel == panel:
                    at = weights.index((cell.n, cell.k)), rows.index(cell.m)
                    values[at] = math.log2(cell.ratio)
                    one.text(
                        at[1],
                        at[0],
                        f"{cell.ratio:.2f}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        fontweight="bold" if cell.beyond_noise else "normal",
                        alpha=1.0 if cell.beyond_noise else 0.6,
                    )
            one.imshow(values, cmap="RdYlGn", vmin=-_REACH, vmax=_REACH, aspect="auto")
            one.grid(visible=False)
            one.set_title(panel)
            one.set_xticks(range(len(rows)), [str(m) for m in rows])
            one.set_yticks(range(len(weights)), [f"{n} x {k}" for n, k in weights] if one is axes[0] else [])
            one.set_xlabel("rows M")
        axes[0].set_ylabel("weight N x K")
        figure.savefig(path, dpi=130)
