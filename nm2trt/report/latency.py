"""Figures of a latency measurement: how the calls spread per variant, and the ratio against the noise per batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nm2trt.artifacts import BatchRecord
from nm2trt.report.figure import (
    ACCENT,
    AGAIN,
    DENSE,
    INK,
    MUTED,
    SPARSE,
    house_style,
    legend_below,
    new_figure,
    svg_markup,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ARM_COLORS = {
    "dense": DENSE,
    "control": ACCENT,
    "sparse": SPARSE,
    "sparse-repeat": AGAIN,
    "torch-eager": MUTED,
    "torch-compiled": INK,
}
_SHOWN_PERCENT = 99


def distribution_svg(batch: BatchRecord, *, name: str) -> str:
    """Draw the share of calls (up to the 99th percentile) that took at most so many milliseconds, one line each."""
    with house_style():
        figure = new_figure(3.7, 2.8)
        axes = figure.subplots()
        axes.set_title(f"Batch {batch.label}")
        share = np.arange(_SHOWN_PERCENT + 1)
        for variant in batch.variants:
            again = variant.name == "sparse-repeat"
            axes.plot(
                variant.quantiles_ms[: _SHOWN_PERCENT + 1],
                share,
                color=_ARM_COLORS[variant.name],
                linestyle=(0, (3, 2)) if again else "-",
                label=variant.name,
            )
        axes.set_ylim(0, 100)
        axes.set_xlim(*_window(batch))
        axes.set_xlabel("latency of a call, ms")
        axes.set_ylabel("% of calls within")
        legend_below(figure, axes, columns=3)
    medians = ", ".join(f"{variant.name} {variant.median_ms:.4g} ms" for variant in batch.variants)
    return svg_markup(figure, name=name, label=f"Distribution of latencies at batch {batch.label}; medians: {medians}")


def _window(batch: BatchRecord) -> tuple[float, float]:
    """Show all variants from their fastest call to where the tail is long: a stray call must not flatten the rest."""
    low = min(variant.quantiles_ms[0] for variant in batch.variants)
    high = max(variant.quantiles_ms[95] for variant in batch.variants)
    median = max(variant.median_ms for variant in batch.variants)
    high = min(high, low + 6 * max(median - low, 0.02 * median))
    margin = 0.04 * (high - low) or 0.04 * high
    return max(0.0, low - margin), high + margin


def ratio_svg(batches: list[BatchRecord], *, name: str) -> str:
    """Draw dense over sparse with its interval per batch size, on the band that the A/A variant calls noise."""
    with house_style():
        figure = new_figure(4.4, 0.9 + 0.42 * len(batches))
        axes = figure.subplots()
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.axvline(1.0, color=MUTED, linewidth=1.0)
        for row, batch in enumerate(batches):
            _ratio_row(axes, row, batch)
        axes.set_yticks(range(len(batches)), [f"batch {batch.label}" for batch in batches])
        axes.set_ylim(len(batches) - 0.4, -0.6)
        reach = max(0.02, *(_reach(batch) for batch in batches))
        axes.set_xlim(1 - 1.25 * reach, 1 + 1.25 * reach)
        axes.set_xlabel("time of dense / time of sparse")
        axes.spines["left"].set_visible(False)
    words = "; ".join(f"batch {batch.label}: {batch.sentence}" for batch in batches)
    return svg_markup(figure, name=name, label=f"Ratio of dense to sparse latency. {words}")


def _reach(batch: BatchRecord) -> float:
    interval = (batch.ratio.low, batch.ratio.high) if np.isfinite(batch.ratio.high) else ()
    ends = (*interval, batch.ratio.value, 1 + batch.noise_floor)
    return float(max(abs(end - 1) for end in ends if np.isfinite(end)))


def _ratio_row(axes: Axes, row: int, batch: BatchRecord) -> None:
    floor = batch.noise_floor if np.isfinite(batch.noise_floor) else 1.0
    band = (1 / (1 + floor), 1 + floor)
    axes.barh(row, band[1] - band[0], left=band[0], height=0.62, color=AGAIN, alpha=0.25, linewidth=0)
    low, high = batch.ratio.low, batch.ratio.high
    if np.isfinite(high):
        axes.plot([low, high], [row, row], color=INK, linewidth=1.8, solid_capstyle="butt")
    axes.plot([batch.ratio.value], [row], marker="o", markersize=6, color=INK)


def sweep_svg(batches: list[BatchRecord], *, name: str) -> str:
    """Draw samples a second of every variant over the batch size."""
    with house_style():
        figure = new_figure(4.4, 2.8)
        axes = figure.subplots()
        sizes = [batch.batch for batch in batches]
        axes.set_xscale("log", base=2)
        for variant_name in dict.fromkeys(variant.name for batch in batches for variant in batch.variants):
            variants = [
                (batch.batch, variant)
                for batch in batches
                for variant in batch.variants
                if variant.name == variant_name
            ]
            axes.plot(
                [size for size, _ in variants],
                [variant.throughput_per_s for _, variant in variants],
                marker="o",
                markersize=4,
                color=_ARM_COLORS[variant_name],
                linestyle=(0, (3, 2)) if variant_name == "sparse-repeat" else "-",
                label=variant_name,
            )
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("batch")
        axes.set_ylabel("samples/s")
        legend_below(figure, axes, columns=3)
    return svg_markup(figure, name=name, label="Throughput over the batch size, a line per variant")
