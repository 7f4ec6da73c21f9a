"""Figure of a load test: throughput and latency over the number of clients."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FixedLocator, NullLocator

from nm2trt.artifacts.server_report import LoadRecord
from nm2trt.report.figure import ACCENT, DENSE, SPARSE, house_style, new_figure, svg_markup

_WIDE = 30


def load_svg(records: Sequence[LoadRecord], *, name: str) -> str:
    """Draw one protocol's levels: requests answered per second, and the median and 99th percentile of their latency."""
    clients = [record.concurrency for record in records]
    with house_style():
        figure = new_figure(7.4, 2.6)
        rate, latency = figure.subplots(1, 2)
        rate.set_title("Requests per second")
        rate.plot(clients, [record.throughput_per_s for record in records], color=SPARSE, marker="o", markersize=4)
        rate.set_ylim(bottom=0)
        latency.set_title("Latency, ms")
        latency.plot(clients, [record.p50_ms for record in records], color=DENSE, marker="o", markersize=4, label="p50")
        latency.plot(
            clients, [record.p99_ms for record in records], color=ACCENT, marker="o", markersize=4, label="p99"
        )
        if max(record.p99_ms for record in records) > _WIDE * min(record.p50_ms for record in records) > 0:
            # Else one slow level flattens the medians.
            latency.set_yscale("log")
            latency.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            latency.set_ylim(bottom=0)
        latency.legend(loc="upper left")
        for axes in (rate, latency):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(clients))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_xlabel("clients")
    words = "; ".join(
        f"{record.concurrency} clients {record.throughput_per_s:.0f}/s, p99 {record.p99_ms:.3g} ms"
        for record in records
    )
    return svg_markup(figure, name=name, label=f"Load over {records[0].protocol}: {words}")
