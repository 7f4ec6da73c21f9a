"""Predicted against measured time of every layer, each predicted by constants fitted without its shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from estimate_data import Row


def draw(rows: list[Row], by_row: dict, predict: Callable[..., float], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.7), dpi=110)
    colours = {"tf32": "#777777", "fp16": "#1f77b4", "int8": "#d95f02"}
    left, right = axes
    for precision, colour in colours.items():
        for network, marker in (("unet", "o"), ("resnet18", "^")):
            points = [(r, by_row[i]) for i, r in enumerate(rows) if r.engine == f"{network} {precision}"]
            if points:
                x, y = [r.dense_us for r, _ in points], [predict(r, c) for r, c in points]
                left.scatter(
                    x, y, s=22, c=colour, marker=marker, alpha=0.7, linewidths=0, label=f"{network} {precision}"
                )
    low, high = 9, 450
    left.plot([low, high], [low, high], c="black", lw=0.8)
    left.fill_between(
        [low, high], [0.85 * low, 0.85 * high], [1.15 * low, 1.15 * high], color="black", alpha=0.08, lw=0
    )
    left.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    left.set(title="Dense kernel time (band: 15 %)", xlabel="measured, us", ylabel="predicted, us")
    left.legend(frameon=False, fontsize=8)
    for precision in ("fp16", "int8"):
        for chosen, marker in ((True, "o"), (False, "x")):
            points = [(r, by_row[i]) for i, r in enumerate(rows) if r.chosen is chosen and r.precision == precision]
            x = [r.dense_us / r.sparse_us / c.clock_gain[r.gpu.key][r.precision] for r, c in points]
            y = [predict(r, c) / predict(r, c, sparse=True) for r, c in points]
            label = f"{precision}, sparse kernel {'ran' if chosen else 'not chosen'}"
            right.scatter(x, y, s=24, c=colours[precision], marker=marker, alpha=0.7, label=label)
    right.plot([0.9, 1.6], [0.9, 1.6], c="black", lw=0.8)
    right.axhline(1.05, c="black", lw=0.6, ls=":")
    right.set(xlim=(0.9, 1.6), ylim=(0.9, 1.6), title="Gain of the sparse kernel (dotted: expected above)")
    right.set(xlabel="measured, dense engine / sparse engine, less clocks", ylabel="predicted")
    right.legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    print(f"wrote {path}")
