"""Predicted against measured time of every point, and whether ranges hold as often as they claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from estimate_errors import Error

COLORS = {"A100": "#1f77b4", "L4": "#2ca02c", "RTX 3090": "#d95f02", "H100": "#7b3294"}
MARKERS = {"layer": "o", "product": "s", "network": "^"}


def draw(errors: Mapping[str, list[Error]], curves: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> None:
    """Write the figure: engines held back at the left, reliability at the right."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.7), dpi=110)
    for family, color in COLORS.items():
        for kind, marker in MARKERS.items():
            some = [
                e for e in errors["engine"] if e.point.family == family and e.point.kind == kind and e.point.dense_us
            ]
            if some:
                left.scatter(
                    [error.point.dense_us for error in some],
                    [error.predicted_dense_us for error in some],
                    s=16,
                    c=color,
                    marker=marker,
                    alpha=0.6,
                    linewidths=0,
                    label=f"{family} {kind}s",
                )
    low, high = 9, 5e5
    left.plot([low, high], [low, high], c="black", lw=0.8)
    left.fill_between([low, high], [0.8 * low, 0.8 * high], [1.25 * low, 1.25 * high], color="black", alpha=0.08, lw=0)
    left.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    left.set(title="Dense time, engine held back (band: 25 %)", xlabel="measured, us", ylabel="predicted, us")
    left.legend(frameon=False, fontsize=7)
    right.plot([0, 1], [0, 1], c="black", lw=0.8)
    for name, curve in sorted(curves.items()):
        right.plot(*zip(*curve, strict=True), marker="o", ms=3, lw=1, label=name)
    right.axvline(0.8, c="black", lw=0.5, ls=":")
    right.set(xlim=(0, 1), ylim=(0, 1), title="Ranges: claimed against found", xlabel="claimed", ylabel="inside")
    right.legend(frameon=False, fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)
