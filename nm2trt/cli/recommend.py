"""`nm2trt recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nm2trt.cli.estimate import estimate_config, network_options
from nm2trt.cli.json_output import json_option, print_json
from nm2trt.cli.render.status import show_status


@click.command(name="recommend")
@network_options
@click.option("--target", type=float, metavar="X", help="Speed-up to reach, such as 1.1; else 95 % of what there is.")
@click.option(
    "--sensitivity",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What each layer costs when sparse: JSON, CSV, or what `nm2trt calibrate` or `prune --sensitivity` wrote.",
)
@json_option
def command(model: Path, *, target: float | None, sensitivity: Path | None, as_json: bool, **options: Any) -> int:
    """Recommend layers to sparsify, before any training.

    Every sparse layer costs accuracy; most of the speed comes from a few. The layers of MODEL, an ONNX file or build
    folder (pruned or not), are ranked by the time that 2:4 sparsity would save, divided by their cost where
    --sensitivity gives one. Ends in the options for `nm2trt train` and `nm2trt prune`.

    \b
    Exit 1: --target cannot be reached, or no layer would gain.
    """
    from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK
    from nm2trt.pipelines.recommend import recommend_layers

    config = estimate_config(options)
    with show_status("reading") as progress:
        found = recommend_layers(model, config, target=target, sensitivity=sensitivity, progress=progress)
    if as_json:
        print_json(found.document().to_json())
    else:
        from nm2trt.cli.render.recommend import recommendation_lines

        click.echo("\n".join(recommendation_lines(found)))
    return EXIT_OK if found.passed else EXIT_BAD_VERDICT
