"""`nm2trt estimate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nm2trt.cli.common import option_group, stdout_console
from nm2trt.cli.json_output import json_option, print_json
from nm2trt.cli.render.status import show_status

if TYPE_CHECKING:
    from nm2trt.pipelines.estimate import EstimateConfig


def _list_gpus(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    from nm2trt.pipelines.estimate import gpu_table

    for key, spec in gpu_table().items():
        figures = f"sm_{spec.sm:<4} {spec.dense.get('fp16', 0):7.1f} TFLOPS fp16 {spec.bandwidth_gb_s:6.0f} GB/s"
        click.echo(f"{key:16} {spec.name:34} {figures}  {spec.source}")
    context.exit()


network_options = option_group(
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
"""What `estimate` and `recommend` share: the network, and where it runs."""


@click.command(name="estimate")
@network_options
@click.option("--assume", metavar="2:4", help="Take every layer that could hold this pattern for pruned.")
@click.option("--all", "show_all", is_flag=True, help="Show layers below 0.5 % of the time, too.")
@json_option
def command(model: Path, *, show_all: bool, as_json: bool, **options: Any) -> int:
    """Estimate dense against sparse time of every layer, without a GPU.

    MODEL is an ONNX file or a build folder. The pattern is counted in its weights; --assume 2:4 asks what a network
    that is not pruned yet would gain. Ranges are those of layers that were held back from the fit; where nothing was
    measured (another GPU, very large products, bf16) the output says so and the ranges are wider.

    Nothing is measured here: `nm2trt profile` measures.
    """
    from nm2trt.errors import EXIT_OK
    from nm2trt.pipelines.estimate import estimate_document, estimate_network

    config, assumed = estimate_config(options), options["assume"]
    with show_status("reading") as progress:
        estimate = estimate_network(model, config, progress=progress)
    if as_json:
        print_json(estimate_document(str(model), estimate, assumed=assumed).to_json())
        return EXIT_OK
    from nm2trt.cli.render.estimate import print_estimate

    print_estimate(stdout_console(), str(model), estimate, assumed=assumed, show_all=show_all)
    return EXIT_OK


def estimate_config(options: dict[str, Any]) -> EstimateConfig:
    """Take the options of `network_options` apart."""
    from nm2trt.pipelines.estimate import EstimateConfig
    from nm2trt.selectors import parse_named_shape

    shapes = dict(parse_named_shape(text) for text in options.pop("shapes"))
    return EstimateConfig(shapes=shapes, **options)
