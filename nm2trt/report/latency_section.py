"""The section of a measurement: ratio, distributions, batch sweep, numbers, clocks."""

from __future__ import annotations

from nm2trt.artifacts import BatchRecord, ReportDocument, VariantRecord
from nm2trt.artifacts.report import DeviceState
from nm2trt.report.latency import distribution_svg, ratio_svg, sweep_svg
from nm2trt.report.page import Block, Callout, Cell, Drawing, Properties, Prose, Section, Table

BACKENDS = {
    "onnxruntime": "ONNX Runtime",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
    "torch": "PyTorch",
    "torch-sparse": "PyTorch",
    "trtexec": "trtexec,",
    "table": "layer times",
}

VARIANT_COLUMNS = ("variant", "median ms", "p90 ms", "p99 ms", "samples/s", "variation", "calls")
"""Headings of `variant_cells`, here and on the terminal."""


def variant_cells(variant: VariantRecord) -> tuple[str, ...]:
    """One variant's figures as they are read."""
    return (
        variant.name,
        f"{variant.median_ms:.4g}",
        "" if variant.p90_ms is None else f"{variant.p90_ms:.4g}",
        "" if variant.p99_ms is None else f"{variant.p99_ms:.4g}",
        f"{variant.throughput_per_s:,.0f}",
        "" if variant.coefficient_of_variation is None else f"{100 * variant.coefficient_of_variation:.1f} %",
        f"{variant.calls:,}" if variant.calls else "",
    )


EXTRA_COLUMNS = ("with transfers ms", "launch ms", "memory MB")
"""Headings of `extra_cells`; a column that no variant fills is left out."""


def extra_cells(variant: VariantRecord) -> tuple[str, ...]:
    """What only some backends tell."""
    return (
        f"{variant.with_transfers.median_ms:.4g}" if variant.with_transfers else "",
        f"{variant.enqueue_ms:.3g}" if variant.enqueue_ms is not None else "",
        f"{variant.memory_bytes / 1e6:,.0f}" if variant.memory_bytes is not None else "",
    )


def setting(report: ReportDocument) -> str:
    """Backend, version, device, threads and precision in one line."""
    runner = report.runner
    threads = f", {runner.threads} threads" if runner.threads else ""
    return f"{BACKENDS[runner.backend]} {runner.version}, {runner.provider}{threads}, {report.precision}."


def latency_section(report: ReportDocument, *, title: str = "Latency", name: str = "latency") -> Section:
    """Ratio, distributions and numbers of a measurement; `name` must be unique on the page."""
    blocks: list[Block] = [Callout(report.runner.note)]
    if report.dense.note:
        blocks.append(Callout(report.dense.note, "unknown"))
    compared = [batch for batch in report.batches if len(batch.variants) > 1]
    if compared:
        blocks.append(
            Drawing(
                f'<div class="narrow">{ratio_svg(compared, name=f"{name}-ratio")}</div>',
                f"Right of 1, the sparse variant was faster than the {compared[0].baseline} one. Dot and line: median "
                f"of the paired ratios with its {100 * report.protocol.confidence:.0f} % interval. Band: how far the "
                "same network differs from itself (A/A); what does not leave it is no difference.",
            )
        )
    panels = "".join(
        distribution_svg(batch, name=f"{name}-b{batch.batch}{batch.mode or ''}")
        for batch in report.batches
        if all(variant.quantiles_ms for variant in batch.variants)
    )
    if panels:
        blocks.append(Drawing(f'<div class="panels">{panels}</div>'))
    for mode, batches in _by_mode(report.batches).items():
        if len(batches) > 1:
            sweep = sweep_svg(batches, name=f"{name}-sweep{mode}")
            how = f", {mode}" if mode else ""
            blocks.append(
                Drawing(f'<div class="narrow">{sweep}</div>', f"Batch sweep: throughput of every variant{how}.")
            )
    if report.batches:
        blocks.append(_latency_table(report.batches))
    blocks += [Prose(remark, quiet=True) for remark in report.remarks()]
    return Section(title, tuple(blocks), lead=setting(report))


def _by_mode(batches: list[BatchRecord]) -> dict[str, list[BatchRecord]]:
    found: dict[str, list[BatchRecord]] = {}
    for one in batches:
        found.setdefault(one.mode or "", []).append(one)
    return found


def _latency_table(batches: list[BatchRecord]) -> Table:
    extras = [extra_cells(variant) for batch in batches for variant in batch.variants]
    shown = [index for index in range(len(EXTRA_COLUMNS)) if any(cells[index] for cells in extras)]
    rows: list[tuple[Cell, ...]] = []
    for batch in batches:
        for index, variant in enumerate(batch.variants):
            more = extra_cells(variant)
            rows.append((batch.label if index == 0 else "", *variant_cells(variant), *(more[one] for one in shown)))
    columns = ("batch", *VARIANT_COLUMNS, *(EXTRA_COLUMNS[one] for one in shown))
    return Table(columns, tuple(rows), numeric=frozenset(range(2, len(columns))))


def contrasts_section(report: ReportDocument) -> Section | None:
    """Variant against variant beside the main pair, and build against build; None where there is neither."""
    rows: list[tuple[Cell, ...]] = []
    for batch in report.batches:
        size = batch.label
        rows += [
            (size, f"{one.over} / {one.under}", _ratio(one.ratio), one.shows or one.sentence) for one in batch.contrasts
        ]
        rows += [
            (size, f"{batch.baseline} / sparse", _ratio(ratio), f"build {number + 1} alone")
            for number, ratio in enumerate(batch.build_ratios)
        ]
    if not rows:
        return None
    return Section(
        "Where the difference comes from",
        (Table(("batch", "ratio", "value", "what it shows"), tuple(rows), numeric=frozenset({2})),),
        lead="Luck of the autotuner, the zeros' effect on power, and sparse kernels, as far as the variants tell.",
    )


def _ratio(ratio: object) -> str:
    value, low, high = (getattr(ratio, key) for key in ("value", "low", "high"))
    return f"{value:.3f}x [{low:.3f}, {high:.3f}]" if high < float("inf") else f"{value:.3f}x, no interval"


def device_section(report: ReportDocument) -> Section | None:
    """Clocks, temperature, power before and after every batch; None where nothing was seen."""
    rows: list[tuple[Cell, ...]] = []
    for batch in report.batches:
        for when, state in (("before", batch.device_before), ("after", batch.device_after)):
            if state is not None:
                rows.append((batch.label, when, *_state_cells(state)))
    if not rows:
        return None
    columns = ("batch", "", "SM clock", "memory clock", "temperature", "power", "held down by", "CPU load")
    used = [0, 1, *(index for index in range(2, len(columns)) if any(row[index] for row in rows))]
    table = Table(tuple(columns[one] for one in used), tuple(tuple(row[one] for one in used) for row in rows))
    names = ", ".join(
        dict.fromkeys(one.device for batch in report.batches for one in (batch.device_before,) if one is not None)
    )
    note = (
        () if any(row[2] for row in rows) else (Properties((("GPU", "not asked: no NVML, or the CPU was measured"),)),)
    )
    return Section("Device before and after", (table, *note), lead=names, folded=True)


def _state_cells(state: DeviceState) -> tuple[str, ...]:
    power = f"{state.power_w:.0f} W" if state.power_w is not None else ""
    limit = f" of {state.power_limit_w:.0f}" if power and state.power_limit_w is not None else ""
    top = f" of {state.clock_sm_max_mhz}" if state.clock_sm_max_mhz else ""
    return (
        f"{state.clock_sm_mhz} MHz{top}" if state.clock_sm_mhz else "",
        f"{state.clock_memory_mhz} MHz" if state.clock_memory_mhz else "",
        f"{state.temperature_c} °C" if state.temperature_c is not None else "",
        power + limit,
        ", ".join(state.throttle_reasons),
        f"{state.cpu_load:.2f} per CPU" if state.cpu_load is not None else "",
    )
