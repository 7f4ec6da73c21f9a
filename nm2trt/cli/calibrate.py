"""`nm2trt calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nm2trt.cli.common import say_threads, threads_option
from nm2trt.cli.json_output import json_option, print_json
from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK


@click.command(name="calibrate")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option(
    "--data",
    metavar="D",
    help="Samples: a data set of `nm2trt train`, an .npz or .npy, a folder of images, or package.module:function.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="OUT.onnx", required=True, help="File to write."
)
@click.option(
    "--method",
    default="entropy",
    show_default=True,
    metavar="NAME",
    help="How ranges are chosen: entropy, minmax, mse, percentile (99.99) or percentile:P.",
)
@click.option("--samples", default=512, show_default=True, metavar="N", help="Most samples to calibrate with.")
@click.option("--held-out", default=10_000, show_default=True, metavar="N", help="Most other samples to judge with.")
@click.option("--batch-size", type=int, metavar="N", help="Samples run at once. Default: what fits 128 MiB.")
@click.option(
    "--placement",
    default="default",
    show_default=True,
    metavar="default|sparse|minimal",
    help="Where Q/DQ go. sparse: also behind each N:M layer whose reader is not INT8. minimal: layer inputs only.",
)
@click.option(
    "--weights",
    default="qdq",
    show_default=True,
    metavar="qdq|int8",
    help="Store weights as floats behind Q/DQ, or as INT8 behind DQ (a quarter of the size).",
)
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these layers in floating point.")
@click.option("--sensitivity", is_flag=True, help="Quantize layer by layer and rank them.")
@click.option(
    "--max-drop",
    type=float,
    metavar="X",
    help="Keep the worst layers in floating point until the score drops by at most X points.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="F",
    help="Take ranges from a calibration cache of TensorRT 7 to 10.",
)
@click.option(
    "--resymmetrize", is_flag=True, help="Take a quantized model's own Q/DQ out first, and calibrate it anew."
)
@click.option("--preprocess", metavar="SPEC", help="For a folder of images: imagenet, or 'resize=256 crop=224 mean=..'")
@click.option("--data-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where the files of the data set are.")
@click.option(
    "--builder",
    default="auto",
    show_default=True,
    metavar="auto|tensorrt|tensorrt-rtx|none",
    help="Compiles the result, to see that it builds and what is INT8 in it.",
)
@click.option("--sm", metavar="NN", help="Compute capability to compile for. Default: the GPU's; 80 for tensorrt-rtx.")
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="F.png", help="Draw the range of every tensor, and clipping."
)
@click.option("--force", is_flag=True, help="Replace OUT.onnx, if nm2trt wrote it.")
@threads_option()
@json_option
def command(model: Path, output: Path, *, plot: Path | None, force: bool, as_json: bool, **options: Any) -> int:
    """Quantize a float ONNX model to INT8 Q/DQ, keep its N:M pattern, and prove both.

    TensorRT 11 has no calibrators: INT8 is Q/DQ nodes in the ONNX file. Scales are per channel for weights
    and per tensor for activations, zero points 0, so a stored zero stays a zero. OUT.onnx gets them where TensorRT
    fuses them; OUT.calibration.json says what was done and found. MODEL.onnx may also be a folder of
    `nm2trt export`.

    \b
    nm2trt calibrate build/model.onnx --data fashion-mnist -o int8.onnx
    nm2trt calibrate resnet50.onnx --data photos/ --preprocess imagenet --placement sparse -o int8.onnx
    nm2trt calibrate model.onnx --cache calibration.cache -o int8.onnx

    \b
    Exit 1: a layer lost its pattern, the score drops by more than --max-drop, or the result does not
            compile. OUT.onnx is still written, so that you can look.
    """
    _check_plot(plot)
    from nm2trt.cli.render.progress import counted_progress
    from nm2trt.pipelines.calibrate import CalibrationConfig, calibrate_model, draw_ranges

    config = CalibrationConfig(**options)
    say_threads()
    with counted_progress("opening") as progress:
        document = calibrate_model(model, output, config, force=force, progress=progress)
    if plot is not None:
        draw_ranges(document, plot)
    if as_json:
        print_json(document.to_json())
    else:
        from nm2trt.cli.render.calibrate import print_calibration

        print_calibration(document, output)
    for line in document.problems:
        click.echo(f"nm2trt: error: {line}", err=True)
    return EXIT_OK if document.verdict == "pass" else EXIT_BAD_VERDICT


def _check_plot(plot: Path | None) -> None:
    from nm2trt.errors import ConfigError

    if plot is not None and (plot.suffix.lower() != ".png" or not plot.parent.is_dir()):
        raise ConfigError("is no .png in an existing folder", where=f"--plot {plot}")
