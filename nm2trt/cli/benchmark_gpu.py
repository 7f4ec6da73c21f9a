"""`nm2trt benchmark-gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nm2trt.cli.common import stderr_console, stdout_console
from nm2trt.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from nm2trt.gpu_benchmark import GpuBenchmarkDocument


@click.command(name="benchmark-gpu")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="GPU.json",
    required=True,
    help="File to write; the plot goes beside it as GPU.png.",
)
@click.option(
    "--dtype", "dtypes", metavar="T,T,..", default="fp16,bf16,int8", show_default=True, help="Of the operands."
)
@click.option(
    "--duration",
    "duration_s",
    metavar="S",
    type=float,
    default=240.0,
    show_default=True,
    help="Seconds for all products; what does not fit is listed as left out.",
)
@click.option(
    "--search/--no-search", default=True, show_default=True, help="Also time cuSPARSELt's searched algorithm."
)
@click.option(
    "--from",
    "measured",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="OLD.json",
    help="Measure nothing: describe and fit anew what is in this file. Needs no GPU.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of operands, order and statistics.")
@click.option("--force", is_flag=True, help="Replace GPU.json, if nm2trt wrote it.")
@json_option
def command(
    output: Path,
    dtypes: str,
    duration_s: float,
    search: bool,
    measured: Path | None,
    seed: int,
    force: bool,
    as_json: bool,
) -> int:
    """Measure dense and 2:4 matrix products of this GPU with torch alone.

    Copies, launches, then products of transformers' and 1x1 convolutions' sizes, dense by cuBLAS and 2:4 by each of
    torch's backends that the GPU has, in interleaved rounds. A difference counts beyond the noise of the same product
    timed twice; a sparse kernel counts by its name in torch's profiler.

    \b
    nm2trt benchmark-gpu -o gpu.json
    nm2trt estimate model.onnx --gpu-file gpu.json
    """
    from nm2trt.artifacts.files import write_atomic
    from nm2trt.gpu_benchmark import BenchmarkConfig, benchmark_gpu, refit

    names: Any = tuple(name.strip() for name in dtypes.split(",") if name.strip())
    config = BenchmarkConfig(duration_s=duration_s, dtypes=names, search=search, seed=seed)
    _check_output(output, force=force)
    document = benchmark_gpu(config, progress=_progress()) if measured is None else refit(_read(measured))
    write_atomic(output, document.to_json())
    _write_plot(document, output.with_suffix(".png"))
    if as_json:
        print_json(document.to_json())
    else:
        _print(document, output)
    return 0


def _read(path: Path) -> GpuBenchmarkDocument:
    from pydantic import ValidationError

    from nm2trt.errors import InputError
    from nm2trt.gpu_benchmark import GpuBenchmarkDocument

    try:
        return GpuBenchmarkDocument.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError("no such file", where=path, hint="name a file of nm2trt benchmark-gpu") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{where}: {first['msg']}" if where else first["msg"],
            where=path,
            hint="name a file of nm2trt benchmark-gpu",
        ) from None


def _check_output(output: Path, *, force: bool) -> None:
    import json

    from nm2trt.errors import ConfigError, InputError
    from nm2trt.gpu_benchmark import GpuBenchmarkDocument

    if not output.parent.is_dir():
        raise ConfigError("parent directory does not exist", where=output, hint="make it first")
    if not output.exists():
        return
    if not force:
        raise ConfigError("exists", where=output, hint="name another file, or use --force")
    try:
        schema = json.loads(output.read_text(encoding="utf-8")).get("schema")
    except (OSError, ValueError, AttributeError):
        schema = None
    if schema != GpuBenchmarkDocument.SCHEMA:
        raise InputError("was not written by nm2trt benchmark-gpu", where=output, hint="name another file")


def _progress() -> Any:
    console = stderr_console()
    if not console.is_terminal:
        return lambda _what, _share: None
    return lambda what, share: console.print(f"{100 * share:3.0f} %  {what}", end="\r", markup=False)


def _write_plot(document: GpuBenchmarkDocument, path: Path) -> None:
    from nm2trt.gpu_benchmark.wording import best_sparse
    from nm2trt.report.gpu_benchmark_plot import MapCell, write_map

    cells = [
        MapCell(
            panel=point.dtype,
            m=point.m,
            n=point.n,
            k=point.k,
            ratio=best.ratio.value,
            beyond_noise=best.finding in ("sparse-faster", "sparse-slower"),
        )
        for point in document.points
        if (best := best_sparse(point)) is not None
    ]
    write_map(cells, path, title=f"Dense over 2:4, {document.machine.name}, torch {document.machine.torch}")


def _print(document: GpuBenchmarkDocument, output: Path) -> None:
    from rich import box
    from rich.table import Table

    from nm2trt.gpu_benchmark.wording import best_sparse

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
    console.print(table)
    if document.left_out:
        failed = [one for one in document.left_out if ":" in one]
        late = len(document.left_out) - len(failed)
        if late:
            console.print(f"{late} products left out for lack of time", style="yellow")
        for one in failed:
            console.print(f"left out: {one}", markup=False, style="yellow", soft_wrap=True)
    if document.constants is not None:
        _print_constants(document)
    for note in document.notes:
        console.print(note, markup=False, style="yellow", soft_wrap=True)
    console.print(document.sentence, markup=False, style="bold", soft_wrap=True)
    console.print(f"wrote {output} and {output.with_suffix('.png')}", markup=False, soft_wrap=True)
    console.print(f"next: nm2trt estimate MODEL --gpu-file {output}", markup=False, soft_wrap=True)


def _print_constants(document: GpuBenchmarkDocument) -> None:
    constants = document.constants
    if constants is None:
        return
    dtypes = [name for name in ("fp16", "bf16", "int8") if any(one.dtype == name for one in document.points)]
    parts = [
        f"{name}: {100 * constants.efficiency[name]:.0f} % of the peak, sparse {constants.sparse_speedup[name]:.2f}x"  # type: ignore[index]
        for name in dtypes
    ]
    spreads = ", ".join(f"{name} {one.low:.2f} to {one.high:.2f}" for name, one in constants.spread.items())
    stdout_console().print(
        f"fitted: {'; '.join(parts)}; {100 * constants.memory_efficiency:.0f} % of the bandwidth; "
        f"{constants.kernel_us:.1f} us a kernel. Measured over predicted, held back: {spreads}",
        markup=False,
        soft_wrap=True,
    )
