"""`nm2trt estimate`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nm2trt.cli.common import stderr_console
from nm2trt.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from nm2trt.estimate.gpus import GpuSpec
    from nm2trt.estimate.kernel import KernelConstants
    from nm2trt.estimate.network import NetworkEstimate
    from nm2trt.layers import LayerWeight


def _list_gpus(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    from nm2trt.estimate.gpus import gpu_table

    for key, spec in gpu_table().items():
        figures = f"sm_{spec.sm:<4} {spec.dense.get('fp16', 0):7.1f} TFLOPS fp16 {spec.bandwidth_gb_s:6.0f} GB/s"
        click.echo(f"{key:16} {spec.name:34} {figures}  {spec.source}")
    context.exit()


def network_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `estimate` and `plan` share: the network, and where it runs."""
    for option in reversed(
        (
            click.argument("model", type=click.Path(path_type=Path), metavar="MODEL"),
            click.option("--gpu", metavar="NAME", help="Such as a100-pcie-40gb; --list-gpus names all."),
            click.option(
                "--list-gpus",
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_list_gpus,
                help="Show the built-in GPUs with their figures and sources.",
            ),
            click.option(
                "--gpu-file",
                type=click.Path(path_type=Path),
                metavar="F",
                help="Another GPU's figures, TOML or JSON (docs/estimate.md), or a file of `nm2trt benchmark-gpu`.",
            ),
            click.option(
                "--precision",
                type=click.Choice(["fp32", "fp16", "bf16", "int8", "fp8"]),
                help="What the engine computes in [default: a build folder's own, else fp16]. INT8 layers stay INT8.",
            ),
            click.option("--batch", type=int, metavar="N", help="Size of dynamic first dimensions."),
            click.option(
                "--shape",
                "shapes",
                multiple=True,
                metavar="NAME=1x3x224x224",
                help="An input's shape, such as ids=32x384; needed for other dynamic dimensions.",
            ),
            click.option(
                "--exclude",
                "--dense-layers",
                "dense_layers",
                multiple=True,
                metavar="GLOB",
                help="These layers stay dense.",
            ),
        )
    ):
        function = option(function)
    return function


@click.command(name="estimate")
@network_options
@click.option("--assume", metavar="2:4", help="Take every layer that could hold this pattern for pruned.")
@click.option("--all", "show_all", is_flag=True, help="Show layers below 0.5 % of the time, too.")
@json_option
def command(
    model: Path,
    gpu: str | None,
    gpu_file: Path | None,
    precision: str | None,
    batch: int | None,
    shapes: tuple[str, ...],
    dense_layers: tuple[str, ...],
    assume: str | None,
    show_all: bool,
    as_json: bool,
) -> int:
    """Estimate dense against sparse time of every layer, without a GPU.

    MODEL is an ONNX file or a build folder. The pattern is counted in its weights; --assume 2:4 asks what a network
    that is not pruned yet would gain. Ranges are those of layers that were held back from the fit; where nothing was
    measured (another GPU, very large products, bf16) the output says so and the ranges are wider.

    Nothing is measured here: `nm2trt profile` measures.
    """
    from nm2trt.errors import EXIT_OK

    estimate = run_estimate(model, gpu, gpu_file, precision, batch, shapes, dense_layers, assume)
    if as_json:
        from nm2trt.estimate.estimate_schema import estimate_document

        print_json(estimate_document(str(model), estimate, assumed=assume).to_json())
        return EXIT_OK
    from nm2trt.cli.common import stdout_console
    from nm2trt.cli.render.estimate import print_estimate

    print_estimate(stdout_console(), str(model), estimate, assumed=assume, show_all=show_all)
    return EXIT_OK


def run_estimate(
    model: Path,
    gpu: str | None,
    gpu_file: Path | None,
    precision: str | None,
    batch: int | None,
    shapes: tuple[str, ...],
    dense_layers: tuple[str, ...],
    assume: str | None,
) -> NetworkEstimate:
    """From options to the estimate."""
    spec, constants = _gpu(gpu, gpu_file)
    from nm2trt.selectors import parse_named_shape

    sizes = dict(parse_named_shape(text) for text in shapes)
    from nm2trt.estimate.network import estimate_network
    from nm2trt.pattern import NMPattern

    built_batch, built_precision = _of_build(model)
    with _watching() as watch:
        return estimate_network(
            model,
            spec,
            precision or built_precision,  # type: ignore[arg-type]
            batch=batch if batch is not None or sizes else built_batch,
            shapes=sizes,
            assume=None if assume is None else NMPattern.parse(assume),
            dense_layers=dense_layers,
            constants=constants,
            watch=watch,
        )


def _gpu(gpu: str | None, gpu_file: Path | None) -> tuple[GpuSpec, KernelConstants | None]:
    """The GPU, and the constants that were fitted on it where its file has some."""
    from nm2trt.errors import ConfigError
    from nm2trt.estimate.gpus import find_gpu, gpu_table, read_gpu_file

    if (gpu is None) == (gpu_file is None):
        what = "no GPU named" if gpu is None else "both --gpu and --gpu-file"
        raise ConfigError(what, hint=f"give one of --gpu {'|'.join(gpu_table())} and --gpu-file F")
    if gpu is not None:
        return find_gpu(gpu), None
    path = gpu_file or Path()
    found = read_gpu_file(path)
    if found.constants is None:
        return found.spec, None
    from nm2trt.estimate.kernel import constants_of_file

    return found.spec, constants_of_file(found.constants, path)


def _of_build(model: Path) -> tuple[int | None, str]:
    """The batch that a build folder's engines were tuned for, and what its products run in beside INT8."""
    if not (model / "build.json").is_file():
        return None, "fp16"
    from nm2trt.artifacts import BuildDocument

    document = BuildDocument.read(model)
    precision = document.precision.removeprefix("int8+")
    return None if document.batch is None else document.batch.opt, precision if precision != "int8" else "fp16"


@contextmanager
def _watching() -> Iterator[Callable[[LayerWeight], None] | None]:
    """Show the layer at hand on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with stderr_console().status("reading") as status:
        yield lambda layer: status.update(f"counting {layer.name}".replace("[", r"\["))
