"""Figure of a load test: throughput and latency over the number of clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from nm2trt.artifacts.server_report import LoadRecord
from nm2trt.report.figure import ACCENT, DENSE, SPARSE, house_style, legend_below, new_figure, svg_markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE = 30


def load_svg(records: Sequence[LoadRecord], *, name: str) -> str:
    """Draw one protocol's levels: requests answered per second, and the median and 99th percentile of their latency.

    Returns:
        Markup of a `<div class="panels">` with two drawings: side by side they are unreadable on a phone.
    """
    words = "; ".join(
        f"{record.concurrency} clients {record.throughput_per_s:.0f}/s, p99 {record.p99_ms:.3g} ms"
        for record in records
    )
    rate = svg_markup(_rate(records), name=f"{name}-rate", label=f"Load over {records[0].protocol}: {words}")
    latency = svg_markup(_latency(records), name=f"{name}-latency", label="Latency, p50 and p99, of the same levels")
    return f'<div class="panels">{rate}{latency}</div>'


def _rate(records: Sequence[LoadRecord]) -> Figure:
    with house_style():
        figure = new_figure(3.7, 2.7)
        axes = figure.subplots()
        axes.set_title("Requests per second")
        clients = [record.concurrency for record in records]
        axes.plot(clients, [record.throughput_per_s for record in records], color=SPARSE, marker="o", markersize=4)
        axes.set_ylim(bottom=0)
        _over_clients(axes, clients)
    return figure


def _latency(records: Sequence[LoadRecord]) -> Figure:
    with house_style():
        figure = new_figure(3.7, 2.7)
        axes = figure.subplots()
        axes.set_title("Latency, ms")
        clients = [record.concurrency for record in records]
        axes.plot(clients, [record.p50_ms for record in records], color=DENSE, marker="o", markersize=4, label="p50")
        axes.plot(clients, [record.p99_ms for record in records], color=ACCENT, marker="o", markersize=4, label="p99")
        if max(record.p99_ms for record in records) > _WIDE * min(record.p50_ms for record in records) > 0:
            # Else one slow level flattens the medians.
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            # matplotlib's own labels for logarithms are formulas, which our style leaves as text.
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        _over_clients(axes, clients)
        legend_below(figure, axes)
    return figure


def _over_clients(axes: Axes, clients: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(clients))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("clients")
