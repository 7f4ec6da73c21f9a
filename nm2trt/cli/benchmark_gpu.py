"""`nm2trt benchmark-gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nm2trt.cli.common import stderr_console
from nm2trt.cli.json_output import json_option, print_json


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
    from nm2trt.pipelines.benchmark_gpu import BenchmarkConfig, measure_gpu

    names: Any = tuple(name.strip() for name in dtypes.split(",") if name.strip())
    config = BenchmarkConfig(duration_s=duration_s, dtypes=names, search=search, seed=seed)
    document = measure_gpu(output, config, measured=measured, force=force, progress=_progress())
    if as_json:
        print_json(document.to_json())
    else:
        from nm2trt.cli.render.benchmark_gpu import print_benchmark

        print_benchmark(document, output)
    return 0


def _progress() -> Any:
    console = stderr_console()
    if not console.is_terminal:
        return None
    return lambda what, share: console.print(f"{100 * share:3.0f} %  {what}", end="\r", markup=False)
