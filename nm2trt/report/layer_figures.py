"""Figures of single layers, of the roofline, and of latency under load."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from nm2trt.artifacts.report_layers import LayersRecord, LayerTimeRecord, LoadRecord, RooflineRecord
from nm2trt.report.figure import ACCENT, DENSE, INK, SPARSE, house_style, legend_below, new_figure, svg_markup

_MOST_BARS = 24
_NAME = 34
_VARIANTS = {"dense": DENSE, "control": DENSE, "sparse": SPARSE}


def bars_svg(layers: LayersRecord, *, name: str) -> str:
    """Draw the longest layers, dense above sparse, in the order in which they run."""
    longest = sorted(layers.layers, key=_time, reverse=True)[:_MOST_BARS]
    kept = {id(row) for row in longest}
    rows = [row for row in layers.layers if id(row) in kept]
    with house_style():
        figure = new_figure(5.6, 0.7 + 0.27 * len(rows))
        axes = figure.subplots()
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        at = np.arange(len(rows))
        axes.barh(at - 0.19, [row.dense_ms or 0.0 for row in rows], 0.36, color=DENSE, label="dense")
        axes.barh(at + 0.19, [row.sparse_ms or 0.0 for row in rows], 0.36, color=SPARSE, label="sparse")
        axes.set_yticks(at, [_label(row) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("ms a call")
        axes.spines["left"].set_visible(False)
        # Above the bars: inside, it would lie on some of them.
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    words = f"Times of the {len(rows)} longest layers of {len(layers.layers)}; {layers.sentence}"
    return svg_markup(figure, name=name, label=words)


def _time(row: LayerTimeRecord) -> float:
    return max(row.dense_ms or 0.0, row.sparse_ms or 0.0)


def _label(row: LayerTimeRecord) -> str:
    mark = " ●" if row.chosen else " ○" if row.weighted and row.eligible else ""
    short = row.name if len(row.name) <= _NAME else f"…{row.name[-_NAME + 1 :]}"
    return short + mark


def roofline_svg(layers: LayersRecord, roofline: RooflineRecord | None, *, name: str) -> str:
    """Draw every layer with arithmetic by its intensity and speed, under the machine's ceilings; empty without any."""
    points = [
        (row.flops / row.bytes, row.flops / (time_ms / 1000), row)
        for row in layers.layers
        if row.flops and row.bytes and (time_ms := row.sparse_ms or row.dense_ms)
    ]
    if not points:
        return ""
    with house_style():
        figure = new_figure(4.8, 3.2)
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_yscale("log")
        scale, unit = (1e12, "T") if max(point[1] for point in points) > 1e12 else (1e9, "G")
        x = np.array([point[0] for point in points])
        span = np.geomspace(min(x.min(), 1.0) / 2, x.max() * 4, 64)
        if roofline is not None:
            dense = np.minimum(span * roofline.bytes_per_s, roofline.dense_flops_per_s)
            axes.plot(span, dense / scale, color=DENSE, label="dense ceiling")
            if roofline.sparse_flops_per_s is not None:
                sparse = np.minimum(span * roofline.bytes_per_s, roofline.sparse_flops_per_s)
                axes.plot(span, sparse / scale, color=SPARSE, linestyle=(0, (4, 2)), label="sparse ceiling")
        for chosen, color, label in ((True, SPARSE, "sparse kernel"), (False, ACCENT, "no sparse kernel seen")):
            some = [(px, py) for px, py, row in points if bool(row.chosen) is chosen]
            if some:
                xs, ys = np.array(some).T
                axes.plot(xs, ys / scale, "o", markersize=4, color=color, alpha=0.8, label=label)
        for axis in (axes.xaxis, axes.yaxis):
            # matplotlib's own labels for logarithms are formulas, which the house style does not typeset.
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("operations a byte")
        axes.set_ylabel(f"{unit}FLOP/s or {unit}OP/s")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    return svg_markup(figure, name=name, label=f"Roofline: {len(points)} layers by arithmetic intensity and speed")


def load_svg(load: LoadRecord, *, name: str) -> str:
    """Draw median and 99th percentile of the latency over the rate of arrivals."""
    with house_style():
        figure = new_figure(4.8, 3.3)
        axes = figure.subplots()
        for variant in dict.fromkeys(one.variant for one in load.points):
            points = [one for one in load.points if one.variant == variant]
            rates = [one.rate_per_s for one in points]
            color = _VARIANTS.get(variant, INK)
            axes.plot(rates, [one.p99_ms for one in points], "o-", color=color, label=f"{variant}, 99 %")
            axes.plot(
                rates, [one.median_ms for one in points], "o:", color=color, label=f"{variant}, median", alpha=0.8
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("requests due a second")
        axes.set_ylabel("latency, ms")
        legend_below(figure, axes)
    return svg_markup(figure, name=name, label=f"Latency over rate. {load.sentence}")
