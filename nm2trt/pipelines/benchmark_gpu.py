"""Measure dense and 2:4 matrix products of this GPU, into a file and a picture beside it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from nm2trt.artifacts.files import write_atomic
from nm2trt.errors import ConfigError, InputError
from nm2trt.gpu_benchmark import BenchmarkConfig, GpuBenchmarkDocument, benchmark_gpu, refit
from nm2trt.gpu_benchmark.wording import best_sparse
from nm2trt.pipelines.progress import ignore_progress
from nm2trt.report.gpu_benchmark_plot import MapCell, write_map

__all__ = ["BenchmarkConfig", "GpuBenchmarkDocument", "best_sparse", "measure_gpu"]

logger = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
"""Called with what is being done, and how much of all is done, 0 to 1."""


def measure_gpu(
    output: Path,
    config: BenchmarkConfig | None = None,
    *,
    measured: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> GpuBenchmarkDocument:
    """Measure this machine's first GPU with torch alone, and fit the constants of `nm2trt estimate` to it.

    Args:
        output: JSON file to write; a plot goes beside it as `.png`.
        config: Dtypes, duration in seconds and seed.
        measured: Measure nothing: describe and fit anew what is in this file. Needs no GPU.
        force: Replace a file that nm2trt wrote.
        progress: Called with what is being done and the share that is done.

    Raises:
        ConfigError: The output's folder does not exist, or the output does.
        InputError: `measured` is no file of this function, or the output was not written by it.
        MachineError: There is no GPU of compute capability 8.0 or newer that torch can use.
        WrongProductError: A sparse product differs from the dense one by more than rounding.
        OSError: The disk is full.

    Example:
        The output is checked before minutes of measuring:

        >>> from nm2trt.errors import ConfigError
        >>> try:
        ...     measure_gpu(Path("no-folder/gpu.json"))
        ... except ConfigError as error:
        ...     print(error.what)
        parent directory does not exist
    """
    _check_output(output, force=force)
    logger.debug("benchmark-gpu into %s", output)
    if measured is None:
        document = benchmark_gpu(config or BenchmarkConfig(), progress=progress or ignore_progress)
    else:
        document = refit(_read(measured))
    write_atomic(output, document.to_json())
    _write_plot(document, output.with_suffix(".png"))
    return document


def _read(path: Path) -> GpuBenchmarkDocument:
    hint = "name a file of nm2trt benchmark-gpu"
    try:
        return GpuBenchmarkDocument.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError("no such file", where=path, hint=hint) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{where}: {first['msg']}" if where else first["msg"], where=path, hint=hint) from None


def _check_output(output: Path, *, force: bool) -> None:
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


def _write_plot(document: GpuBenchmarkDocument, path: Path) -> None:
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
