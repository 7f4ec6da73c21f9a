"""`nm2trt prune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nm2trt.cli.common import (
    check_plot,
    layer_pattern,
    option_group,
    output_option,
    say_threads,
    stdout_console,
    threads_option,
)
from nm2trt.cli.json_output import json_option, print_json
from nm2trt.cli.render.status import show_status

if TYPE_CHECKING:
    from nm2trt.pipelines.prune import PruneConfig, PruneDocument
    from nm2trt.pipelines.prune_data import DataConfig
    from nm2trt.pipelines.torch_network import CheckpointConfig

_data_options = option_group(
    click.option(
        "--data",
        metavar="D",
        help="Prune with samples: a data set of `nm2trt train`, an .npz or .npy, a folder of images, or "
        "package.module:function.",
    ),
    click.option("--samples", type=click.Path(path_type=Path), metavar="F.npz", help="The same, as a file of arrays."),
    click.option("--model", metavar="NAME", help="Of a checkpoint, with samples: its network, as `export` takes it."),
    click.option("--input-shape", metavar="SHAPE", help="Of --model: one sample, such as 3x224x224."),
    click.option("--input", "inputs", multiple=True, metavar="NAME=SHAPE", help="Of --model: one of several inputs."),
    click.option("--classes", type=int, metavar="N", help="Of --model. Default: as its weights say."),
    click.option(
        "--method",
        metavar="obs|wanda|magnitude",
        help="How weights are chosen. obs also changes what stays. Default: obs with data, else magnitude.",
    ),
    click.option(
        "--damping", type=float, metavar="X", help="obs: share of the Hessian's mean diagonal added. Default: 0.01."
    ),
    click.option("--recalibrate-bn", is_flag=True, help="Take batch norm statistics behind pruned layers anew."),
    click.option(
        "--max-drop",
        type=float,
        metavar="X",
        help="Keep the most sensitive layers dense until the score drops by at most X points (without labels: "
        "until outputs differ by at most X %).",
    ),
    click.option("--sensitivity", is_flag=True, help="Prune layer by layer and rank them, for `nm2trt recommend`."),
    click.option("--calibration-samples", type=int, metavar="N", help="Most samples to prune with. Default: 512."),
    click.option(
        "--held-out",
        type=int,
        metavar="N",
        help="Most other samples to compare with the dense network. Default: 10000.",
    ),
    click.option("--batch-size", type=int, metavar="N", help="Samples run at once. Default: by their size."),
    click.option("--preprocess", metavar="SPEC", help="For a folder of images: imagenet, or 'resize=256 crop=224'."),
    click.option("--data-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where the data set's files are."),
    click.option(
        "--plot", type=click.Path(path_type=Path), metavar="F.png", help="Draw the output error of every layer."
    ),
)
"""Options of pruning with data."""


@click.command(name="prune")
@click.argument("path", type=click.Path(path_type=Path), metavar="PATH")
@click.option("--pattern", default="2:4", show_default=True, metavar="N:M", help="Keep N of every M weights.")
@output_option("OUT", "File to write, in the format of PATH; a folder where PATH is a Hugging Face folder.")
@click.option("--layer", "layers", multiple=True, metavar="GLOB=N:M", help="Another pattern for these layers.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these layers as they are.")
@click.option("--permute", is_flag=True, help="ONNX: reorder channels first, so that more is kept.")
@click.option(
    "--permute-seconds",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    metavar="S",
    help="Search budget in reference-CPU seconds; the same everywhere, since operations are counted.",
)
@_data_options
@click.option("--force", is_flag=True, help="Replace the output file.")
@threads_option()
@json_option
def command(path: Path, output: Path, *, plot: Path | None, as_json: bool, **options: Any) -> int:
    """Prune a trained checkpoint or ONNX file once to an N:M pattern, by magnitude or with data.

    PATH is a .safetensors, .pt or .onnx file, or a folder that holds one (run, build, Hugging Face). OUT has the
    same format, and everything but the pruned weights is as it was. Of every group of M weights along the
    reduction axis the N largest stay; no value is rounded. GLOBs match tensor and node names: 'layer3.*'.

    Stay dense: depthwise and transposed convolutions, layers that M does not divide, embeddings, and, unless --layer
    names them, classifiers (in ONNX whatever lies between them and the output, in checkpoints by name), fixed tables
    (bins, Fourier and mel matrices, masks) and a checkpoint's tensors that are not known to be weights.
    One-shot pruning costs accuracy: measure it, or train on with `nm2trt train`.

    --data keeps far more of a network's accuracy (ONNX, runs, checkpoints with --model): layer by layer, on what the
    pruned network before it gives, the inputs choose which weights go, and those that stay make up for them.
    OUT.prune.json says what each layer lost and how the network compares with the dense one on held-out samples.

    --permute reorders the channels between layers, with all that produces and reads them, so that the network
    computes the same; ONNX Runtime checks that. More magnitude is kept; with data, more of the method's scores.

    \b
    nm2trt prune resnet50.onnx --data photos/ --preprocess imagenet --recalibrate-bn -o pruned.onnx
    nm2trt prune runs/dense --data digits -o pruned.safetensors
    nm2trt prune encoder.onnx --samples inputs.npz --layer '*.ffn.*=1:4' -o pruned.onnx

    \b
    Exit 1: `verify` does not find the pattern in what was written, a permutation changed the outputs, or
            --max-drop cannot be met; OUT is then not written.
    """
    from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK

    config = _config(options, plot)
    if config.permute_s is not None or config.data is not None:
        say_threads()
    document = _prune(path, output, config)
    _show(document, plot, as_json=as_json)
    return EXIT_OK if document.verdict == "pass" else EXIT_BAD_VERDICT


def _show(document: PruneDocument, plot: Path | None, *, as_json: bool) -> None:
    if plot is not None and document.verdict == "pass":
        from nm2trt.pipelines.prune import draw_errors

        draw_errors(document, plot)
    if as_json:
        print_json(document.to_json())
    else:
        from nm2trt.cli.render.prune import print_document

        print_document(stdout_console(), document)


def _prune(path: Path, output: Path, config: PruneConfig) -> PruneDocument:
    from nm2trt.pipelines.prune import prune_file

    if config.data is None:
        with show_status("opening") as progress:
            return prune_file(path, output, config, progress=progress)
    from nm2trt.cli.render.progress import counted_progress

    with counted_progress("opening") as steps:
        return prune_file(path, output, config, progress=lambda words: steps(words, 0, 0), steps=steps)


def _config(options: dict[str, Any], plot: Path | None) -> PruneConfig:
    from nm2trt.pipelines.prune import PruneConfig

    config = PruneConfig(
        pattern=options["pattern"],
        layer_patterns=dict(layer_pattern(text) for text in options["layers"]),
        exclude=options["exclude"],
        permute_s=options["permute_seconds"] if options["permute"] else None,
        data=_data_config(options, plot),
        network=_network(options),
        force=options["force"],
    )
    if plot is not None:
        check_plot(plot)
    return config


_OF_NETWORK = ("model", "input_shape", "inputs", "classes")


def _network(options: dict[str, Any]) -> CheckpointConfig | None:
    if all(options[name] in (None, ()) for name in _OF_NETWORK):
        return None
    from nm2trt.pipelines.torch_network import CheckpointConfig

    return CheckpointConfig(**{name: options[name] for name in _OF_NETWORK})


_DATA_ONLY = {
    "model": "--model",
    "input_shape": "--input-shape",
    "inputs": "--input",
    "classes": "--classes",
    "damping": "--damping",
    "recalibrate_bn": "--recalibrate-bn",
    "max_drop": "--max-drop",
    "sensitivity": "--sensitivity",
    "calibration_samples": "--calibration-samples",
    "held_out": "--held-out",
    "batch_size": "--batch-size",
    "preprocess": "--preprocess",
    "data_dir": "--data-dir",
}


def _data_config(options: dict[str, Any], plot: Path | None) -> DataConfig | None:
    """What the user asked for of pruning with data; None where it is not asked for."""
    from nm2trt.errors import ConfigError

    data, file, method = options["data"], options["samples"], options["method"]
    if data is not None and file is not None:
        raise ConfigError("--data and --samples both name samples", hint="give one of them")
    if data is None and file is None:
        given = [option for name, option in _DATA_ONLY.items() if options[name] not in (None, False, ())]
        given += ["--plot"] if plot is not None else []
        given += [f"--method {method}"] if method not in (None, "magnitude") else []
        if given:
            raise ConfigError(
                f"{', '.join(given)} need{'s' if len(given) == 1 else ''} samples", hint="give --data or --samples"
            )
        return None
    if file is not None and file.suffix not in (".npz", ".npy"):
        raise ConfigError("is no .npz or .npy", where=f"--samples {file}", hint="name other data with --data")
    from nm2trt.pipelines.prune_data import DataConfig

    names = {"calibration_samples": "samples"}
    given_options = {
        names.get(name, name): options[name]
        for name in _DATA_ONLY
        if options[name] is not None and name not in _OF_NETWORK
    }
    return DataConfig(data=data if data is not None else str(file), method=method or "obs", **given_options)
