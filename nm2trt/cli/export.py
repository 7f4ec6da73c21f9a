"""`nm2trt export`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nm2trt.cli.common import force_option, json_option, output_option, stderr_console
from nm2trt.cli.export_engines import engine_options

if TYPE_CHECKING:
    from nm2trt.artifacts import BuildDocument
    from nm2trt.cli.export_config import ExportConfig
    from nm2trt.engine import Chosen
    from nm2trt.export import ExportSource

Progress = Callable[[str], None]

MODEL = "model.onnx"


def _quiet(_step: str) -> None:
    pass


@click.command(name="export")
@click.argument("source", type=click.Path(path_type=Path), metavar="SOURCE")
@output_option("BUILD", "Folder to write.")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    metavar="fp32|fp16|bf16",
    help="Type of weights and arithmetic; input and output stay fp32. TensorRT's sparse kernels need fp16 or INT8.",
)
@click.option("--batch", default="1:8:64", show_default=True, metavar="MIN:OPT:MAX", help="Batch sizes to build for.")
@engine_options
@click.option(
    "--tolerance",
    type=float,
    metavar="X",
    help="Largest output error, relative to the largest output. Default: 1e-4 fp32, 1e-2 fp16, 5e-2 bf16.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the files of the run's data set are, for the numerics check.",
)
@force_option
@json_option
def command(
    source: Path,
    output: Path,
    precision: str,
    batch: str,
    builder: str,
    sm: str | None,
    tolerance: float | None,
    data_dir: Path | None,
    force: bool,
    as_json: bool,
    **engine: Any,
) -> int:
    """Turn a trained network into ONNX and TensorRT engines, and check every step.

    SOURCE is a folder that `nm2trt train` wrote. BUILD gets model.onnx, its outputs compared with torch's and
    its pattern counted in the file itself; engines without (control) and with SPARSE_WEIGHTS (sparse); and build.json,
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
        batch=batch,
        builder=builder,
        sm=sm,
        tolerance=tolerance,
        data_dir=data_dir,
        force=force,
        engine=engine,
    )
    if console.is_terminal:
        with console.status("starting") as status:
            document = work(progress=status.update)
    else:
        document = work()
    if as_json:
        click.echo(document.to_json(), nl=False)
    else:
        from nm2trt.cli.export_table import print_build

        print_build(document, output)
    for line in failures(document):
        click.echo(f"nm2trt: error: {line}", err=True)
    return EXIT_OK if document.verdict == "pass" else EXIT_BAD_VERDICT


def export_run(
    source: Path,
    output: Path,
    *,
    precision: str = "fp32",
    batch: str = "1:8:64",
    builder: str = "auto",
    sm: str | None = None,
    tolerance: float | None = None,
    data_dir: Path | None = None,
    force: bool = False,
    engine: Mapping[str, Any] | None = None,
    progress: Progress = _quiet,
) -> BuildDocument:
    """Export a run folder to a build folder: the stages export and engine, joined.

    Args:
        source: Run folder.
        output: Build folder; appears whole or not at all.
        precision: "fp32", "fp16" or "bf16".
        batch: "MIN:OPT:MAX".
        builder: "auto", "tensorrt", "tensorrt-rtx" or "none".
        sm: Compute capability such as "80"; None takes the builder's usual one.
        tolerance: Bound on the relative error; None takes the precision's usual one.
        data_dir: Where the data set's files are.
        force: Replace a folder that nm2trt wrote.
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
    from nm2trt.cli.export_config import checked_config

    config = checked_config(
        output,
        force=force,
        precision=precision,
        batch=batch,
        builder=builder,
        sm=sm,
        tolerance=tolerance,
        engine={**(engine or {})},
    )
    from nm2trt.engine import choose_builder

    progress("looking for TensorRT")
    chosen = choose_builder(config.builder)
    target = chosen.builder.resolve_sm(config.sm) if chosen.builder is not None else None
    progress(f"reading {source.name}")
    network = _load(source)
    with staged_folder(output, force=force) as folder:
        document = _export_into(folder, network, config, chosen, target, data_dir, progress)
        document.write(folder)
    return document


def failures(document: BuildDocument) -> list[str]:
    """One line for each check that failed."""
    lines = []
    numerics = document.numerics
    if numerics is not None and not numerics.passed:
        lines.append(
            f"{MODEL}: outputs differ from torch's by {numerics.max_rel_error:.2e} of the largest output, more than "
            f"{numerics.tolerance:.0e}, at {numerics.max_abs_error_at}"
        )
    if document.source.pattern is not None and document.pattern["verdict"] != "pass":
        lines.append(f"{MODEL}: {'; '.join(document.pattern['problems'])}{_first_bad(document)}")
    lines += [f"{engine.arm} engine: {engine.error} ({engine.log})" for engine in document.engines if engine.error]
    return lines


def _first_bad(document: BuildDocument) -> str:
    """Name the first layer that breaks its pattern, with its first group that does."""
    for layer in document.pattern["layers"]:
        group = layer["first_violation"]
        if layer["verdict"] == "violates" and group is not None:
            where = ", ".join(map(str, group["index"]))
            values = ", ".join(f"{value:g}" for value in group["values"])
            return f"; first {layer['name']}, group at [{where}] along axis {layer['axis']}: {values}"
    return ""


def _load(source: Path) -> ExportSource:
    from nm2trt.errors import InputError
    from nm2trt.export import load_run

    if not source.exists():
        raise InputError("does not exist", where=source, mend="SOURCE is a folder that `nm2trt train` wrote")
    if not source.is_dir():
        raise InputError("is a file, and SOURCE is a folder that `nm2trt train` wrote", where=source)
    return load_run(source)


def _export_into(
    folder: Path,
    network: ExportSource,
    config: ExportConfig,
    chosen: Chosen,
    sm: str | None,
    data_dir: Path | None,
    progress: Progress,
) -> BuildDocument:
    """Write everything but build.json into `folder`."""
    from nm2trt.artifacts import BuildDocument, Facts, GraphPort, file_records, host_record, write_atomic
    from nm2trt.cli.export_engines import build_engines
    from nm2trt.engine import chosen_fact, faster_fact
    from nm2trt.export import (
        OPSET,
        TOLERANCES,
        check_numerics,
        eligible_fact,
        exporter_version,
        legal_fact,
        numerics_samples,
        onnx_bytes,
        onnx_from_module,
        ports,
    )
    from nm2trt.verify import verify_path
    from nm2trt.verify.document import document_of

    precision = config.precision
    progress("exporting to ONNX")
    model = onnx_from_module(
        network.module,
        network.input_shape,
        precision=precision,
        patterns=network.patterns,
        method=network.record.method,
    )
    content = onnx_bytes(model)
    write_atomic(folder / MODEL, content)
    progress("comparing outputs with torch")
    numerics = check_numerics(
        network.module,
        content,
        numerics_samples(network.data, network.input_shape, config.batch, data_dir=data_dir),
        config.batch,
        tolerance=config.tolerance or TOLERANCES[precision],
        bf16=precision == "bf16",
    )
    progress("counting the pattern")
    judged = verify_path(folder / MODEL, source=MODEL)
    described = [GraphPort(name=n, dtype=d, shape=s) for n, d, s in ports(model)]
    count = len(model.graph.inputs)
    inputs, outputs = tuple(described[:count]), tuple(described[count:])
    engines = build_engines(
        folder, inputs, onnx=MODEL, batch=config.batch, chosen=chosen, sm=sm, settings=config.engine, progress=progress
    )
    progress("writing the manifest")
    passed = (
        numerics.passed
        and (network.record.pattern is None or judged.verdict == "pass")
        and all(engine.error is None for engine in engines)
    )
    return BuildDocument(
        source=network.record,
        precision=precision,
        io_dtype="fp32",
        opset=OPSET[precision],
        exporter=exporter_version(),
        batch=config.batch,
        inputs=inputs,
        outputs=outputs,
        numerics=numerics,
        pattern=document_of(judged).model_dump(mode="json", by_alias=True),
        engines=engines,
        engines_note=chosen.why,
        facts=Facts(
            legal=legal_fact(judged, network.patterns),
            eligible=eligible_fact(judged),
            chosen=chosen_fact(engines, folder, why_none=chosen.why),
            faster=faster_fact(),
        ),
        verdict="pass" if passed else "fail",
        files=file_records(folder),
        host=host_record(),
    )
