"""A GPU's products for people: the machine, a row for each product, the fitted constants."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from nm2trt.cli.common import stdout_console
from nm2trt.pipelines.benchmark_gpu import GpuBenchmarkDocument, best_sparse


def print_benchmark(document: GpuBenchmarkDocument, output: Path) -> None:
    """Print the machine, every product, what was left out, and the constants."""
    console = stdout_console()
    machine = document.machine
    console.print(
        f"{machine.name}, driver {machine.driver}, torch {machine.torch}; {'; '.join(machine.backends)}",
        markup=False,
        soft_wrap=True,
    )
    console.print(
        f"copy {document.copy_gb_s:,.0f} GB/s; empty kernel {document.launch_us:.2f} us in a graph, "
        f"{document.eager_launch_us:.1f} us launched by the host",
        markup=False,
    )
    console.print(product_table(document))
    _print_left_out(console, document)
    if document.constants is not None:
        _print_constants(console, document)
    for note in document.notes:
        console.print(note, markup=False, style="yellow", soft_wrap=True)
    console.print(document.sentence, markup=False, style="bold", soft_wrap=True)
    console.print(f"wrote {output} and {output.with_suffix('.png')}", markup=False, soft_wrap=True)
    console.print(f"next: nm2trt estimate MODEL --gpu-file {output}", markup=False, soft_wrap=True)


def product_table(document: GpuBenchmarkDocument) -> Table:
    """One row per product, with the fastest sparse kernel of each."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("dtype", "M", "N", "K", "dense us", "2:4 us", "ratio", "finding", "kernel"):
        table.add_column(heading, justify="left" if heading in ("dtype", "finding", "kernel") else "right")
    for point in sorted(document.points, key=lambda one: (one.dtype, one.n * one.k, one.m)):
        best = best_sparse(point)
        table.add_row(
            point.dtype,
            str(point.m),
            str(point.n),
            str(point.k),
            f"{point.dense_us:.1f}",
            f"{best.median_us:.1f}" if best else "",
            f"{best.ratio.value:.2f}x [{best.ratio.low:.2f}, {best.ratio.high:.2f}]" if best else "",
            best.finding if best else "no sparse kernel ran",
            f"{best.backend}{', searched' if best.searched else ''}" if best else "",
        )
    return table


def _print_left_out(console: Console, document: GpuBenchmarkDocument) -> None:
    failed = [one for one in document.left_out if ":" in one]
    late = len(document.left_out) - len(failed)
    if late:
        console.print(f"{late} products left out for lack of time", style="yellow")
    for one in failed:
        console.print(f"left out: {one}", markup=False, style="yellow", soft_wrap=True)


def _print_constants(console: Console, document: GpuBenchmarkDocument) -> None:
    constants = document.constants
    if constants is None:
        return
    dtypes = [name for name in ("fp16", "bf16", "int8") if any(one.dtype == name for one in document.points)]
    parts = [
        f"{name}: {100 * constants.efficiency[name]:.0f} % of the peak, sparse {constants.sparse_speedup[name]:.2f}x"  # type: ignore[index]
        for name in dtypes
    ]
    spreads = ", ".join(f"{name} {one.low:.2f} to {one.high:.2f}" for name, one in constants.spread.items())
    console.print(
        f"fitted: {'; '.join(parts)}; {100 * constants.memory_efficiency:.0f} % of the bandwidth; "
        f"{constants.kernel_us:.1f} us a kernel. Measured over predicted, held back: {spreads}",
        markup=False,
        soft_wrap=True,
    )
