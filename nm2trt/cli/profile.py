"""`nm2trt profile`: dense against sparse, timed on this machine or read from others' files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nm2trt.cli.common import force_option, given_options, output_option, schema_option, threads_option
from nm2trt.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from nm2trt.artifacts import ReportDocument
    from nm2trt.pipelines.profile import ProfileSources

_PATH = click.Path(path_type=Path)


def _document() -> type[ReportDocument]:
    from nm2trt.artifacts import ReportDocument

    return ReportDocument


@click.command()
@click.argument("sources", metavar="[SOURCE | DENSE.log SPARSE.log]", type=_PATH, nargs=-1)
@click.option(
    "--dense",
    metavar="BUILD_OR_ONNX",
    type=_PATH,
    help="The dense-trained network: same graph, same precision. Without it, the sparse network's zeros are filled.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "onnxruntime", "tensorrt", "tensorrt-rtx", "torch-sparse"]),
    default="auto",
    show_default=True,
    help="What runs the networks.",
)
@click.option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda", "tensorrt"]),
    default="auto",
    show_default=True,
    help="ONNX Runtime's execution provider.",
)
@click.option(
    "--mode",
    "modes",
    metavar="M,M,..",
    default="eager,compiled,cuda-graph",
    show_default=True,
    help="How PyTorch executes the network (torch-sparse).",
)
@click.option(
    "--precision",
    type=click.Choice(["fp16", "bf16"]),
    default="fp16",
    show_default=True,
    help="Dtype of the network (torch-sparse); elsewhere it is the file's.",
)
@click.option("--model", metavar="NAME", help="Network of a checkpoint, as `nm2trt export` takes it (torch-sparse).")
@click.option("--input-shape", metavar="C,H,W", help="One sample of a checkpoint's network with one input.")
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=SHAPE[:DTYPE]", help="One input of several, as in export."
)
@click.option("--classes", type=int, metavar="N", help="Classes of a checkpoint's network. Default: its weights'.")
@click.option("--batch", "batches", metavar="N,N,..", default="1,8,32", show_default=True, help="Batch sizes.")
@click.option(
    "--shape",
    "shapes",
    metavar="INPUT=1x3x224x224",
    multiple=True,
    help="Values of an input's dynamic dimensions; the first number gives way to --batch.",
)
@click.option(
    "--duration", "duration_s", metavar="S", type=float, default=6.0, show_default=True, help="Seconds per batch size."
)
@click.option("--rebuilds", type=int, default=1, show_default=True, help="How many builds of every variant are timed.")
@click.option("--reference", metavar="RUN", type=_PATH, help="Run folder: time its network in PyTorch, too.")
@click.option("--layers/--no-layers", default=True, show_default=True, help="Time single layers in a run apart.")
@click.option("--streams", type=int, default=0, help="Measure under load, too, with so many concurrent streams.")
@click.option(
    "--rate",
    "rates",
    metavar="R,R,..",
    default="",
    help="Requests a second under load.  [default: 50, 70 and 90 % of what the slower variant can do]",
)
@click.option(
    "--trust",
    is_flag=True,
    help="Load plans whose sha256 build.json does not vouch for, and import code that a run names: you made them.",
)
@click.option("--trtexec-sparse", metavar="PREFIX", type=_PATH, help="Report on trtexec's files instead: sparse run.")
@click.option("--trtexec-dense", metavar="PREFIX", type=_PATH, help="The same of the dense engine.")
@click.option("--trtexec-again", metavar="PREFIX", type=_PATH, help="A second run of the sparse engine: the noise.")
@click.option("--layer-times", metavar="F.csv", type=_PATH, help="Report on a table of layer times instead.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of inputs, order of the runs, and statistics.")
@schema_option(_document, "report.json")
@output_option("REPORT", "Folder to write: report.json, report.html.")
@force_option
@threads_option(sleep=False)
@json_option
@click.pass_context
def command(
    context: click.Context, /, sources: tuple[Path, ...], output: Path, *, force: bool, as_json: bool, **options: Any
) -> int:
    """Time a sparse-trained network against a dense one.

    The variants run in turns, in shuffled order: dense, sparse, and sparse once more; on TensorRT also the sparse
    weights without sparse kernels. The repeated variant is the noise floor: a difference counts only where it is larger
    than the difference of a network to itself. Then every layer is timed, in a run of its own.

    SOURCE is a folder of `nm2trt export` or an ONNX file. With --backend torch-sparse it may also be a run folder or a
    checkpoint with --model: the network runs in PyTorch, dense against torch's own 2:4 kernels, in every --mode; of an
    ONNX file only its matrix products do. With two logs of trtexec (or folders, or PREFIXes of its files), dense first,
    or with --trtexec-* or --layer-times, nothing is run: the report is made of what others measured.
    """
    from nm2trt.cli.render.progress import measuring_progress
    from nm2trt.errors import EXIT_OK
    from nm2trt.pipelines.profile import profile_build, profile_config

    beside = _sources(options)
    given = given_options(context)
    config = profile_config(**{name: value for name, value in options.items() if name in given})
    with measuring_progress() as progress:
        report = profile_build(sources, output, config, beside, force=force, progress=progress)
    if as_json:
        print_json(report.to_json())
    else:
        from nm2trt.cli.render.profile import show

        show(report, output)
    return EXIT_OK


def _sources(options: dict[str, Any]) -> ProfileSources:
    """Take what names networks and files out of the options; the settings of the measurement are left."""
    from nm2trt.pipelines.profile import CheckpointConfig, MeasuredFiles, ProfileSources

    return ProfileSources(
        dense=options.pop("dense"),
        reference=options.pop("reference"),
        checkpoint=CheckpointConfig(
            **{name: options.pop(name) for name in ("model", "input_shape", "inputs", "classes")}
        ),
        files=MeasuredFiles(
            layer_times=options.pop("layer_times"),
            **{name: options.pop(f"trtexec_{name}") for name in ("sparse", "dense", "again")},
        ),
    )
