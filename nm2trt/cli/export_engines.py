"""Options of the engine and the INT8 part of `nm2trt export`."""

from __future__ import annotations

from pathlib import Path

import click

from nm2trt.cli.common import option_group

engine_options = option_group(
    click.option(
        "--builder",
        default="auto",
        show_default=True,
        metavar="auto|tensorrt|tensorrt-rtx|none",
        help="auto: tensorrt where it and a GPU are present, else tensorrt-rtx, else none.",
    ),
    click.option(
        "--sm", metavar="NN", help="Compute capability to compile for. Default: the GPU's; 80 for tensorrt-rtx."
    ),
    click.option(
        "--dense",
        type=click.Path(path_type=Path),
        metavar="BUILD_OR_ONNX",
        help="The same network with dense weights: adds the dense engine, what sparsity is to be compared with.",
    ),
    click.option(
        "--timing-cache",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Kernel timings to read and extend. Default: one in BUILD, shared by its engines.",
    ),
    click.option("--workspace", metavar="SIZE", help="Maximum workspace size: 512M, 2G. Default: the GPU's memory."),
    click.option(
        "--optimization-level",
        type=int,
        metavar="0-5",
        help="Builder optimization level (0-5). Default: TensorRT's, 3.",
    ),
    click.option("--refittable", is_flag=True, help="Let `nm2trt refit` change the weights later. Not tensorrt-rtx."),
    click.option(
        "--ort", is_flag=True, help="Also write ort-tensorrt.json: options for ONNX Runtime's TensorRT provider."
    ),
    click.option(
        "--rebuilds",
        type=int,
        default=1,
        show_default=True,
        metavar="N",
        help="How often each engine is built; builds of one network differ, and `profile` can tell by how much.",
    ),
)
"""The engine part; all but --builder and --sm are fields of `nm2trt.engine.EngineSettings`."""


calibration_options = option_group(
    click.option(
        "--calibration-samples",
        type=int,
        default=512,
        show_default=True,
        metavar="N",
        help="With int8: maximum number of calibration samples.",
    ),
    click.option(
        "--held-out",
        type=int,
        default=10_000,
        show_default=True,
        metavar="N",
        help="With int8: maximum number of held-out evaluation samples.",
    ),
    click.option(
        "--method",
        default="entropy",
        show_default=True,
        metavar="NAME",
        help="With int8: how ranges are chosen, as in `nm2trt calibrate`.",
    ),
    click.option(
        "--placement",
        default="default",
        show_default=True,
        metavar="default|sparse|minimal",
        help="With int8: where Q/DQ go, as in `nm2trt calibrate`.",
    ),
    click.option(
        "--weights",
        default="qdq",
        show_default=True,
        metavar="qdq|int8",
        help="With int8: how weights are stored, as in `nm2trt calibrate`.",
    ),
    click.option("--exclude", multiple=True, metavar="GLOB", help="With int8: leave these layers in floating point."),
    click.option(
        "--max-drop",
        type=float,
        metavar="X",
        help="With int8: keep the worst layers in floating point until the score drops by at most X points.",
    ),
    click.option(
        "--preprocess",
        metavar="SPEC",
        help="With int8, for a folder of images: imagenet, or 'resize=256 crop=224 mean=..'",
    ),
)
"""What only `--precision int8` takes: fields of `CalibrationOptions`."""
