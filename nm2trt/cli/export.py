"""`nm2trt export`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nm2trt.cli.common import force_option, output_option, say_threads, stderr_console, threads_option
from nm2trt.cli.export_engines import engine_options
from nm2trt.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from nm2trt.artifacts import BatchRange, BuildDocument, EngineRecord, GraphPort, NumericsRecord
    from nm2trt.engine import Chosen
    from nm2trt.export import Exported, Samples
    from nm2trt.pipelines.export_config import ExportConfig, SourceOptions

Progress = Callable[[str], None]

F = TypeVar("F", bound=Callable[..., Any])

MODEL = "model.onnx"
_REFUSED = "the ONNX parser refused"


def _quiet(_step: str) -> None:
    pass


_SOURCE_OPTIONS = (
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


def _source_options(command: F) -> F:
    """Add the options that say what SOURCE itself does not: fields of `SourceOptions`."""
    for option in reversed(_SOURCE_OPTIONS):
        command = option(command)
    return command


@click.command(name="export")
@click.argument("source", type=click.Path(path_type=Path), metavar="SOURCE")
@output_option("BUILD", "Folder to write.")
@_source_options
@click.option(
    "--precision",
    metavar="fp32|fp16|bf16",
    help="Type of weights and arithmetic. Default: fp32, and of ONNX as found. Sparse kernels need fp16 or INT8.",
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
def command(
    source: Path,
    output: Path,
    precision: str | None,
    io_dtype: str,
    batch: str | None,
    builder: str,
    sm: str | None,
    tolerance: float | None,
    force: bool,
    as_json: bool,
    **others: Any,
) -> int:
    """Turn a network into ONNX and TensorRT engines, and check every step.

    SOURCE is a folder that `nm2trt train` wrote, a checkpoint with --model, or an ONNX file, which is taken as it is
    unless --precision asks for another type. BUILD gets model.onnx, its outputs compared with the source's and its
    pattern counted in the file itself; engines without (control) and with SPARSE_WEIGHTS (sparse); and build.json,
    which says for each of four facts (legal, eligible, chosen, faster) what is proved and what is not.

    \b
    Exit 1: the outputs differ by more than the tolerance, a layer that was meant to be sparse is not,
            or an engine did not build. BUILD is still written, so that you can look.
    """
    from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK

    console = stderr_console()
    work = partial(
        export_run,
        source,
        output,
        precision=precision,
        io_dtype=io_dtype,
        batch=batch,
        builder=builder,
        sm=sm,
        tolerance=tolerance,
        force=force,
        about={name: value for name, value in others.items() if name in _ABOUT_SOURCE},
        engine={name: value for name, value in others.items() if name not in _ABOUT_SOURCE},
    )
    from nm2trt.threads import choose_threads, torch_threads

    say_threads()
    with torch_threads(choose_threads()):
        if console.is_terminal:
            with console.status("starting") as status:
                document = work(progress=status.update)
        else:
            document = work()
    if as_json:
        print_json(document.to_json())
    else:
        from nm2trt.cli.render.export import print_build

        print_build(document, output)
    for line in failures(document):
        click.echo(f"nm2trt: error: {line}", err=True)
    return EXIT_OK if document.verdict == "pass" else EXIT_BAD_VERDICT


def export_run(
    source: Path,
    output: Path,
    *,
    precision: str | None = None,
    io_dtype: str = "fp32",
    batch: str | None = None,
    builder: str = "auto",
    sm: str | None = None,
    tolerance: float | None = None,
    data_dir: Path | None = None,
    force: bool = False,
    about: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
    progress: Progress = _quiet,
) -> BuildDocument:
    """Export a source to a build folder: the stages export and engine, joined.

    Args:
        source: Run folder, checkpoint or ONNX file.
        output: Build folder; appears whole or not at all.
        precision: "fp32", "fp16" or "bf16"; None is fp32, and for ONNX as found.
        io_dtype: "fp32", or "same" as `precision`.
        batch: "MIN:OPT:MAX"; None is 1:8:64 where the batch is free.
        builder: "auto", "tensorrt", "tensorrt-rtx" or "none".
        sm: Compute capability such as "80"; None takes the builder's usual one.
        tolerance: Bound on the relative error; None takes the precision's usual one.
        data_dir: Where the data set's files are.
        force: Replace a folder that nm2trt wrote.
        about: Fields of `nm2trt.pipelines.export_config.SourceOptions`: what the source does not tell.
        engine: Fields of `nm2trt.engine.EngineSettings`: how engines are built.
        progress: Called with what is being done, in words.

    Returns:
        What was written as build.json; its verdict is "fail" when a check failed.

    Raises:
        ConfigError: Wrong options, or the output exists.
        InputError: The source cannot be used.
        MachineError: A builder was asked for that this machine lacks.
        OSError: The disk is full; nothing is left.
    """
    from nm2trt.artifacts import staged_folder
    from nm2trt.export import source_kind
    from nm2trt.pipelines.export_config import checked_config

    config = checked_config(
        output,
        force=force,
        precision=precision,
        io_dtype=io_dtype,
        batch=batch,
        builder=builder,
        sm=sm,
        tolerance=tolerance,
        source={"data_dir": data_dir, **(about or {})},
        engine={**(engine or {})},
    )
    source_kind(source)
    from nm2trt.engine import check_settings, choose_builder

    progress("looking for TensorRT")
    chosen = choose_builder(config.builder)
    target = None
    if chosen.builder is not None:
        check_settings(chosen.builder, config.engine)
        target = chosen.builder.resolve_sm(config.sm)
    with staged_folder(output, force=force) as folder:
        document = _export_into(folder, source, config, chosen, target, progress)
        document.write(folder)
    return document


def failures(document: BuildDocument) -> list[str]:
    """One line for each check that failed."""
    lines = []
    numerics = document.numerics
    if numerics is not None and not numerics.passed:
        lines.append(f"{MODEL}: {_difference(numerics)}")
    if document.source.pattern is not None and document.pattern["verdict"] != "pass":
        lines.append(f"{MODEL}: {'; '.join(document.pattern['problems'])}{_first_bad(document)}")
    lines += [f"{engine.variant} engine: {engine.error} ({engine.log})" for engine in document.engines if engine.error]
    return lines


def _difference(numerics: NumericsRecord) -> str:
    """What differs most, and how many outputs do."""
    failed = [one for one in numerics.outputs if one.message]
    more = f"; {len(failed)} of {len(numerics.outputs)} outputs differ" if len(failed) > 1 else ""
    if math.isfinite(numerics.max_rel_error) and all(one.mismatches is None for one in failed):
        return (
            f"outputs differ from the reference's by {numerics.max_rel_error:.2e} of the largest output, "
            f"more than {numerics.tolerance:.0e}, at {numerics.max_abs_error_at}{more}"
        )
    first = next((one for one in failed if numerics.max_abs_error_at.startswith(f"{one.name}: ")), failed[0])
    at = numerics.max_abs_error_at.removeprefix(f"{first.name}: ")
    return f"{first.message.partition('; ')[0]}{f', first at {at}' if at else ''}{more}"


def _first_bad(document: BuildDocument) -> str:
    """Name the first layer that breaks its pattern, with its first group that does."""
    for layer in document.pattern["layers"]:
        group = layer["first_violation"]
        if layer["verdict"] == "violates" and group is not None:
            where = ", ".join(map(str, group["index"]))
            values = ", ".join(f"{value:g}" for value in group["values"])
            return f"; first {layer['name']}, group at [{where}] along axis {layer['axis']}: {values}"
    return ""


def _exported(source: Path, config: ExportConfig) -> Exported:
    from nm2trt.export import export_source
    from nm2trt.export.inputs import parse_fixed, parse_sizes

    return export_source(
        source,
        model=config.source.model,
        inputs=config.source.specs(),
        sizes=parse_sizes(config.source.sizes),
        fixed=parse_fixed(config.source.fixed),
        classes=config.source.classes,
        precision=config.precision,
        io_dtype=config.io_dtype,
        float_bias=config.source.float_bias,
        trust=config.source.trust,
    )


def _samples(network: Exported, batch: BatchRange | None, options: SourceOptions) -> Samples:
    """Real samples where there are some; only a source without data gets random ones, and the record says so."""
    from nm2trt.export import noise, sample_count, samples_of_data, samples_of_file

    if options.samples is not None:
        return samples_of_file(options.samples, network.inputs)
    count = sample_count(network.macs, batch)
    data = options.data or network.data
    if data is not None:
        return samples_of_data(data, network.inputs, count, options.data_dir)
    return noise(network.inputs, count, fixed=not network.dynamic)


def _export_into(
    folder: Path, source: Path, config: ExportConfig, chosen: Chosen, sm: str | None, progress: Progress
) -> BuildDocument:
    """Write everything but build.json into `folder`."""
    from nm2trt.artifacts import BuildDocument, Facts, file_records, host_record
    from nm2trt.engine import chosen_fact, faster_fact
    from nm2trt.export import check_numerics, check_onnx, eligible_fact, graph_ports, legal_fact, settle_batch
    from nm2trt.export.quantized import check_tensorrt_takes
    from nm2trt.pipelines.export_config import USUAL_BATCH
    from nm2trt.verify import verify_path
    from nm2trt.verify.verify_schema import document_of

    progress("exporting to ONNX")
    network = _exported(source, config)
    if chosen.builder is not None:
        check_tensorrt_takes(network.model, source)
    batch = settle_batch(network, config.batch, usual=USUAL_BATCH)
    samples = _samples(network, batch, config.source)
    network.write(folder / MODEL, external=config.source.external_data)
    check_onnx(folder / MODEL, strict=network.converted_to is not None)
    progress("comparing outputs")
    numerics = check_numerics(
        network.reference,
        folder / MODEL,
        samples,
        batch,
        tolerance=config.tolerance or network.tolerance,
        precision=network.precision,
        notes=network.notes,
        probe=network.converted_to == "fp16",
    )
    progress("counting the pattern")
    checked = verify_path(folder / MODEL, source=MODEL)
    inputs, outputs = graph_ports(network.model)
    engines = _engines(folder, inputs, batch, config, chosen, sm, progress)
    progress("writing the manifest")
    passed = (
        numerics.passed
        and (network.record.pattern is None or checked.verdict == "pass")
        and all(engine.error is None for engine in engines)
    )
    return BuildDocument(
        source=network.record,
        precision=network.precision,
        io_dtype=network.io_dtype,
        opset=network.opset,
        exporter=network.exporter,
        batch=batch,
        inputs=inputs,
        outputs=outputs,
        numerics=numerics,
        pattern=document_of(checked).model_dump(mode="json", by_alias=True),
        engines=engines,
        engines_note=chosen.why,
        facts=Facts(
            legal=legal_fact(checked, network.patterns),
            eligible=eligible_fact(checked),
            chosen=chosen_fact(engines, folder, why_none=chosen.why),
            faster=faster_fact(),
        ),
        verdict="pass" if passed else "fail",
        files=file_records(folder),
        host=host_record(),
    )


def _engines(
    folder: Path,
    inputs: tuple[GraphPort, ...],
    batch: BatchRange | None,
    config: ExportConfig,
    chosen: Chosen,
    sm: str | None,
    progress: Progress,
) -> list[EngineRecord]:
    """Build the engines, the dense one from a dense source that went the same way.

    Raises:
        InputError: The parser refuses operators: all are named, and a build without an engine would be of no use.
    """
    import tempfile

    from nm2trt.cli.export_engines import build_engines
    from nm2trt.errors import InputError

    settings = config.engine
    with tempfile.TemporaryDirectory(prefix="nm2trt-dense-") as temporary:
        if settings.dense is not None and chosen.builder is not None:
            progress(f"exporting {settings.dense.name} to ONNX for the dense engine")
            dense = Path(temporary) / MODEL
            _exported(settings.dense, config).write(dense, external=config.source.external_data)
            settings = settings.model_copy(update={"dense": dense})
        engines = build_engines(
            folder, inputs, onnx=MODEL, batch=batch, chosen=chosen, sm=sm, settings=settings, progress=progress
        )
    refused = next((engine for engine in engines if (engine.error or "").startswith(_REFUSED)), None)
    if refused is not None:
        raise InputError(str(refused.error), where=MODEL, hint="export the network with other operators")
    return engines
