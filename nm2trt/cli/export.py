"""`nm2trt export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nm2trt.cli.common import force_option, option_group, output_option, say_threads, stderr_console, threads_option
from nm2trt.cli.export_engines import calibration_options, engine_options
from nm2trt.cli.json_output import json_option, print_json

_source_options = option_group(
    click.option(
        "--model",
        metavar="NAME",
        help="Network of a checkpoint: as `nm2trt train --model` takes it, package.module:factory, transformers:CLASS.",
    ),
    click.option("--input-shape", metavar="C,H,W", help="One sample of a network with one input, without its batch."),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="NAME=SHAPE[:DTYPE][@LOW..HIGH]",
        help="One input of several, one sample: --input input_ids=128:int64@0..30000. For ONNX: sizes that it leaves "
        "open beside the batch; a star is the batch where it is not first: --input state=2x*x32.",
    ),
    click.option(
        "--size",
        "sizes",
        multiple=True,
        metavar="AXIS=N",
        help="Size of every axis of that name, such as sequence=128, in an ONNX file.",
    ),
    click.option(
        "--fixed",
        multiple=True,
        metavar="NAME=VALUE",
        help="What an input always holds when outputs are compared, such as speed=1.0 or lengths=16,16.",
    ),
    click.option("--classes", type=int, metavar="N", help="Classes of a checkpoint's network. Default: its weights'."),
    click.option("--data", metavar="NAME", help="Data set whose test samples the outputs are compared on."),
    click.option(
        "--data-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where the files of the data set are."
    ),
    click.option(
        "--samples",
        type=click.Path(path_type=Path),
        metavar="F.npz",
        help="Samples to compare the outputs on: one array [samples, ...] for each input.",
    ),
    click.option(
        "--float-bias",
        is_flag=True,
        help="Store the INT32 biases of ONNX Runtime's quantize_static as floats, which TensorRT needs; same values.",
    ),
    click.option(
        "--trust",
        is_flag=True,
        help="Import the code that a run folder names although it was not trained on this machine.",
    ),
    click.option("--external-data", is_flag=True, help="Put the weights beside model.onnx; always so beyond 2 GB."),
)
"""What SOURCE itself does not say: fields of `SourceOptions`."""

_ABOUT_SOURCE = (
    "model",
    "input_shape",
    "inputs",
    "sizes",
    "fixed",
    "classes",
    "data",
    "data_dir",
    "samples",
    "external_data",
    "float_bias",
    "trust",
)
_ABOUT_CALIBRATION = ("held_out", "method", "placement", "weights", "exclude", "max_drop", "preprocess")


@click.command(name="export")
@click.argument("source", type=click.Path(path_type=Path), metavar="SOURCE")
@output_option("BUILD", "Folder to write.")
@_source_options
@click.option(
    "--precision",
    metavar="fp32|fp16|bf16|int8",
    help="Type of weights and arithmetic. Default: fp32, and of ONNX as found. Sparse kernels need fp16 or INT8; "
    "int8 calibrates a float network.",
)
@click.option(
    "--io-dtype",
    default="fp32",
    show_default=True,
    metavar="fp32|same",
    help="Type of floating-point inputs and outputs; same: that of --precision.",
)
@click.option(
    "--batch", metavar="MIN:OPT:MAX", help="Batch sizes to build for. Default: 1:8:64, where the batch is free."
)
@calibration_options
@engine_options
@click.option(
    "--tolerance",
    type=float,
    metavar="X",
    help="Largest output error, relative to the largest output. Default: 1e-4 fp32, 1e-2 fp16, 5e-2 bf16 and INT8.",
)
@force_option
@threads_option()
@json_option
def command(source: Path, output: Path, *, force: bool, as_json: bool, **options: Any) -> int:
    """Turn a network into ONNX and TensorRT engines, and check every step.

    SOURCE is a folder that `nm2trt train` wrote, a checkpoint with --model, or an ONNX file, which is taken as it is
    unless --precision asks for another type. BUILD gets model.onnx, its outputs compared with the source's and its
    pattern counted in the file itself; engines without (control) and with SPARSE_WEIGHTS (sparse); and build.json,
    which says for each of four facts (legal, eligible, chosen, faster) what is proved and what is not.
    --precision int8 calibrates on the run's own data, or on --data or --samples, as `nm2trt calibrate` does.

    \b
    Exit 1: the outputs differ by more than the tolerance, a layer that was meant to be sparse is not, the INT8
            score drops by more than --max-drop, or an engine did not build. BUILD is still written, so that
            you can look.
    """
    from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK
    from nm2trt.pipelines.export import export_network, failures
    from nm2trt.pipelines.export_config import checked_config
    from nm2trt.threads import choose_threads, torch_threads

    config = checked_config(output, force=force, **_grouped(options))
    say_threads()
    console = stderr_console()
    with torch_threads(choose_threads()):
        if console.is_terminal:
            with console.status("starting") as status:
                document = export_network(source, output, config, force=force, progress=status.update)
        else:
            document = export_network(source, output, config, force=force)
    if as_json:
        print_json(document.to_json())
    else:
        from nm2trt.cli.render.export import print_build

        print_build(document, output)
    for line in failures(document):
        click.echo(f"nm2trt: error: {line}", err=True)
    return EXIT_OK if document.verdict == "pass" else EXIT_BAD_VERDICT


def _grouped(options: dict[str, Any]) -> dict[str, Any]:
    """Options as fields of `ExportConfig`."""
    calibration = {name: options.pop(name) for name in _ABOUT_CALIBRATION}
    calibration["samples"] = options.pop("calibration_samples")
    own = {name: options.pop(name) for name in ("precision", "io_dtype", "batch", "builder", "sm", "tolerance")}
    return {
        **own,
        "source": {name: options.pop(name) for name in _ABOUT_SOURCE},
        "calibration": calibration,
        "engine": options,
    }
