"""`nm2trt prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nm2trt.cli.common import layer_pattern, output_option, say_threads, stdout_console, threads_option
from nm2trt.cli.json_output import json_option, print_json
from nm2trt.cli.render.status import show_status


@click.command(name="prune")
@click.argument("path", type=click.Path(path_type=Path), metavar="PATH")
@click.option("--pattern", default="2:4", show_default=True, metavar="N:M", help="Keep N of every M weights.")
@output_option("OUT", "File to write, in the format of PATH; a folder where PATH is a Hugging Face folder.")
@click.option("--layer", "layers", multiple=True, metavar="GLOB=N:M", help="Another pattern for these layers.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these layers as they are.")
@click.option("--permute", is_flag=True, help="ONNX: reorder channels first, so that more magnitude is kept.")
@click.option(
    "--permute-seconds",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    metavar="S",
    help="Search budget in reference-CPU seconds; the same everywhere, since operations are counted.",
)
@click.option("--force", is_flag=True, help="Replace the output file.")
@threads_option()
@json_option
def command(
    path: Path, output: Path, *, layers: tuple[str, ...], permute: bool, permute_seconds: float, as_json: bool,
    **options: Any,
) -> int:  # fmt: skip
    """Prune a trained checkpoint or ONNX file once, by magnitude, to an N:M pattern.

    PATH is a .safetensors, .pt or .onnx file, or a folder that holds one (run, build, Hugging Face). OUT has the
    same format, and everything but the pruned weights is as it was. Of every group of M weights along the
    reduction axis the N largest stay; no value is rounded. GLOBs match tensor and node names: 'layer3.*'.

    Stay dense: depthwise and transposed convolutions, layers that M does not divide, embeddings, and, unless --layer
    names them, classifiers (in ONNX whatever lies between them and the output, in checkpoints by name), fixed tables
    (bins, Fourier and mel matrices, masks) and a checkpoint's tensors that are not known to be weights.
    One-shot pruning costs accuracy: measure it, or train on with `nm2trt train`.

    --permute reorders the channels between layers, with all that produces and reads them, so that the network
    computes the same; ONNX Runtime checks that.

    \b
    Exit 1: `verify` does not find the pattern in what was written, or a permutation changed the outputs;
            OUT is then not written.
    """
    from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK
    from nm2trt.pipelines.prune import PruneConfig, prune_file

    patterns, permute_s = dict(layer_pattern(text) for text in layers), permute_seconds if permute else None
    config = PruneConfig(layer_patterns=patterns, permute_s=permute_s, **options)
    if permute:
        say_threads()
    with show_status("opening") as progress:
        document = prune_file(path, output, config, progress=progress)
    if as_json:
        print_json(document.to_json())
    else:
        from nm2trt.cli.render.prune import print_document

        print_document(stdout_console(), document)
    return EXIT_OK if document.verdict == "pass" else EXIT_BAD_VERDICT
