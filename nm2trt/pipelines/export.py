"""From a trained network to a build folder: ONNX, its checks, the engines."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

from nm2trt.artifacts import (
    BatchRange,
    BuildDocument,
    EngineRecord,
    Facts,
    GraphPort,
    NumericsRecord,
    file_records,
    host_record,
    staged_folder,
)
from nm2trt.artifacts.files import check_output
from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.engine import Chosen, check_settings, choose_builder, chosen_fact, faster_fact
from nm2trt.errors import InputError
from nm2trt.export import (
    Exported,
    Samples,
    check_numerics,
    check_onnx,
    eligible_fact,
    export_source,
    graph_ports,
    legal_fact,
    noise,
    sample_count,
    samples_of_data,
    samples_of_file,
    settle_batch,
    source_kind,
)
from nm2trt.export.inputs import parse_fixed, parse_sizes
from nm2trt.export.quantized import check_tensorrt_takes
from nm2trt.pipelines.engines import build_engines
from nm2trt.pipelines.export_config import USUAL_BATCH, ExportConfig, SourceOptions
from nm2trt.pipelines.progress import ignore_progress
from nm2trt.verify import verify_path
from nm2trt.verify.verify_schema import document_of

Progress = Callable[[str], object]
"""Called with what is being done, in words."""


def export_network(
    source: Path,
    output: Path,
    config: ExportConfig | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> BuildDocument:
    """Export a source to a build folder: the stages export and engine, joined.

    Args:
        source: Run folder, checkpoint or ONNX file.
        output: Build folder; appears whole or not at all.
        config: How; None takes the usual settings.
        force: Replace a folder that nm2trt wrote.
        progress: Called with what is being done, in words.

    Returns:
        What was written as build.json; its verdict is "fail" when a check failed (`failures` tells which).

    Raises:
        ConfigError: Settings that do not fit the source or the builder, or the output exists.
        InputError: The source cannot be used.
        MachineError: A builder was asked for that this machine lacks.
        OSError: The disk is full; nothing is left.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from onnx import parser, save
        >>> text = '''<ir_version: 8, opset_import: ["": 17]>
        ... relu (float[4, 8] x) => (float[4, 8] y) { y = Relu (x) }'''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(parser.parse_model(text), f"{folder}/relu.onnx")
        ...     build = export_network(Path(folder, "relu.onnx"), Path(folder, "build"), ExportConfig(builder="none"))
        >>> build.verdict, build.numerics.max_rel_error
        ('pass', 0.0)
    """
    config = config or ExportConfig()
    progress = progress or ignore_progress
    check_output(output, force=force)
    source_kind(source)
    progress("looking for TensorRT")
    chosen = choose_builder(config.builder)
    sm = None
    if chosen.builder is not None:
        check_settings(chosen.builder, config.engine)
        sm = chosen.builder.resolve_sm(config.sm)
    with staged_folder(output, force=force) as folder:
        document = _export_into(folder, source, config, chosen, sm, progress)
        document.write(folder)
    return document


def failures(document: BuildDocument) -> list[str]:
    """One line for each check that failed."""
    lines = []
    numerics = document.numerics
    if numerics is not None and not numerics.passed:
        lines.append(f"{ONNX_FILE}: {_difference(numerics)}")
    if document.source.pattern is not None and document.pattern["verdict"] != "pass":
        lines.append(f"{ONNX_FILE}: {'; '.join(document.pattern['problems'])}{_first_bad(document)}")
    if document.calibration is not None:
        lines += [f"{ONNX_FILE}: {problem}" for problem in document.calibration.problems]
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
    first = next((one for one in failed if one.name == numerics.worst), failed[0])
    at = first.max_abs_error_at
    return f"{first.summary}{f', first at {at}' if at else ''}{more}"


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
    return export_source(
        source,
        model=config.source.model,
        inputs=config.source.specs(),
        sizes=parse_sizes(config.source.sizes),
        fixed=parse_fixed(config.source.fixed),
        classes=config.source.classes,
        # INT8 is calibrated from the float network: fp32 of torch, ONNX as found.
        precision=None if config.precision == "int8" else config.precision,
        io_dtype=config.io_dtype,
        float_bias=config.source.float_bias,
        trust=config.source.trust,
    )


def _samples(network: Exported, batch: BatchRange | None, options: SourceOptions) -> Samples:
    """Real samples where there are some; only a source without data gets random ones, and the record says so."""
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
    progress("exporting to ONNX")
    network = _exported(source, config)
    if chosen.builder is not None:
        check_tensorrt_takes(network.model, source)
    batch = settle_batch(network, config.batch, usual=USUAL_BATCH)
    calibration = None
    if config.precision == "int8":
        from nm2trt.pipelines.export_int8 import quantize_network

        network, numerics, calibration = quantize_network(network, folder, batch, config, progress)
    else:
        numerics = _compared(folder, network, batch, config, progress)
    progress("counting the pattern")
    checked = verify_path(folder / ONNX_FILE, source=ONNX_FILE)
    inputs, outputs = graph_ports(network.model)
    kept = () if calibration is None else calibration.kept_float
    engines = _engines(folder, inputs, batch, config, chosen, sm, kept, progress)
    progress("writing the manifest")
    passed = (
        numerics.passed
        and (calibration is None or calibration.verdict == "pass")
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
        calibration=calibration,
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


def _compared(
    folder: Path, network: Exported, batch: BatchRange | None, config: ExportConfig, progress: Progress
) -> NumericsRecord:
    """Write the network and hold it against its source."""
    samples = _samples(network, batch, config.source)
    network.write(folder / ONNX_FILE, external=config.source.external_data)
    check_onnx(folder / ONNX_FILE, strict=network.converted_to is not None)
    progress("comparing outputs")
    return check_numerics(
        network.reference,
        folder / ONNX_FILE,
        samples,
        batch,
        tolerance=config.tolerance or network.tolerance,
        precision=network.precision,
        notes=network.notes,
        probe=network.converted_to == "fp16",
    )


def _engines(
    folder: Path,
    inputs: tuple[GraphPort, ...],
    batch: BatchRange | None,
    config: ExportConfig,
    chosen: Chosen,
    sm: str | None,
    kept_float: tuple[str, ...],
    progress: Progress,
) -> list[EngineRecord]:
    """Build the engines, the dense one from a dense source that went the same way.

    Raises:
        InputError: The parser refuses operators: all are named, and a build without an engine would be of no use.
    """
    settings = config.engine
    with tempfile.TemporaryDirectory(prefix="nm2trt-dense-") as temporary:
        if settings.dense is not None and chosen.builder is not None:
            progress(f"exporting {settings.dense.name} to ONNX for the dense engine")
            dense = Path(temporary) / ONNX_FILE
            network = _exported(settings.dense, config)
            if config.precision == "int8" and "int8" not in network.precision:
                from nm2trt.pipelines.export_int8 import write_dense_int8

                write_dense_int8(network, dense, config, kept_float, progress)
            else:
                network.write(dense, external=config.source.external_data)
            settings = settings.model_copy(update={"dense": dense})
        engines = build_engines(
            folder, inputs, onnx=ONNX_FILE, batch=batch, chosen=chosen, sm=sm, settings=settings, progress=progress
        )
    refused = next((engine for engine in engines if engine.error_code == "parser-refused"), None)
    if refused is not None:
        raise InputError(str(refused.error), where=ONNX_FILE, hint="export the network with other operators")
    return engines
