"""INT8 in one export: the float network is checked, calibrated, and its pattern and score are held against it."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from nm2trt.artifacts import BatchRange, NumericsRecord, write_atomic
from nm2trt.artifacts.build import CalibrationRecord
from nm2trt.artifacts.calibration import CalibrationDocument, ModelFile, document_path
from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.calibration.graph import open_float_graph
from nm2trt.calibration.sources import open_data
from nm2trt.errors import ConfigError
from nm2trt.export import Exported, Samples, check_numerics, check_onnx, export_source, sample_count
from nm2trt.export.reference import laid_out
from nm2trt.pipelines.calibrate import CalibrationConfig, calibrate_model
from nm2trt.pipelines.export_config import ExportConfig

Progress = Callable[[str], object]

_BEFORE = "compared before quantization; {file} compares the INT8 network with that one"


def quantize_network(
    network: Exported, folder: Path, batch: BatchRange | None, config: ExportConfig, progress: Progress
) -> tuple[Exported, NumericsRecord, CalibrationRecord]:
    """Write the INT8 form of a float network, with the document of its calibration beside it.

    Args:
        network: In floating point, not written yet.
        folder: Gets model.onnx and model.calibration.json.
        batch: Sizes to build for.
        config: Of the export.
        progress: Called with what is being done, in words.

    Returns:
        The INT8 network, how the float one compares with its source, and what calibration found.

    Raises:
        ConfigError: Nothing says what to calibrate on, or options do not fit the samples.
        InputError: The network or the samples cannot be used.
    """
    settings = _settings(network, config)
    with tempfile.TemporaryDirectory(prefix="nm2trt-int8-") as temporary:
        path = _written(network, Path(temporary))
        progress("comparing outputs")
        numerics = check_numerics(
            network.reference,
            path,
            _held_out_samples(path, network, batch, settings),
            batch,
            tolerance=config.tolerance or network.tolerance,
            precision=network.precision,
            notes=network.notes,
        )
        with _calibrated(path, settings, progress) as (quantized, document):
            quantized.write(folder / ONNX_FILE, external=config.source.external_data)
    document = document.model_copy(update={"output": ModelFile.of(folder / ONNX_FILE)})
    write_atomic(document_path(folder / ONNX_FILE), document.to_json())
    file = document_path(Path(ONNX_FILE)).name
    numerics = numerics.model_copy(update={"notes": (*numerics.notes, _BEFORE.format(file=file))})
    joined = replace(
        network,
        model=quantized.model,
        precision=quantized.precision,
        opset=quantized.opset,
        exporter=f"{network.exporter}, calibrated",
    )
    return joined, numerics, CalibrationRecord.of(document, file)


def write_dense_int8(
    network: Exported, target: Path, config: ExportConfig, kept: tuple[str, ...], progress: Progress
) -> None:
    """Write the dense network's INT8 form, with Q/DQ at the same places.

    Args:
        network: The dense one, in floating point.
        target: `.onnx` to write.
        config: Of the export.
        kept: Layers that --max-drop kept in floating point in the sparse network.
        progress: Called with what is being done, in words.

    Raises:
        ConfigError: Nothing says what to calibrate on.
        InputError: The network or the samples cannot be used.
    """
    settings = _settings(network, config)
    names = tuple(name.replace("[", "[[]") for name in kept)
    settings = replace(settings, max_drop=None, exclude=(*settings.exclude, *names))
    with tempfile.TemporaryDirectory(prefix="nm2trt-int8-") as temporary:
        path = _written(network, Path(temporary))
        with _calibrated(path, settings, progress) as (quantized, _):
            quantized.write(target, external=config.source.external_data)


def _settings(network: Exported, config: ExportConfig) -> CalibrationConfig:
    source = config.source
    data = str(source.samples) if source.samples is not None else source.data or network.data
    if data is None:
        raise ConfigError(
            "needs samples to calibrate on, and the source names no data",
            where="--precision int8",
            hint="give --samples F.npz or --data",
        )
    options = config.calibration.model_dump()
    return CalibrationConfig(data=data, data_dir=source.data_dir, builder="none", **options)


def _written(network: Exported, folder: Path) -> Path:
    path = folder / "float" / ONNX_FILE
    path.parent.mkdir()
    network.write(path)
    check_onnx(path, strict=network.converted_to is not None)
    return path


@contextmanager
def _calibrated(
    path: Path, settings: CalibrationConfig, progress: Progress
) -> Iterator[tuple[Exported, CalibrationDocument]]:
    """The INT8 network, whose weights may be read inside the block, and what was found."""

    def tell(what: str, done: int, of: int) -> None:
        progress(f"{what}: {done} of {of}" if of else what)

    with tempfile.TemporaryDirectory(prefix="nm2trt-int8-") as temporary:
        output = Path(temporary) / ONNX_FILE
        document = calibrate_model(path, output, settings, progress=tell)
        yield export_source(output), document


def _held_out_samples(path: Path, network: Exported, batch: BatchRange | None, settings: CalibrationConfig) -> Samples:
    """Samples that the ranges do not see, for the comparison of the float network with its source."""
    count = sample_count(network.macs, batch)
    assert settings.data is not None
    source = open_data(
        settings.data,
        open_float_graph(path).ports,
        samples=settings.samples,
        held_out=settings.held_out,
        preprocess=settings.preprocess,
        data_dir=settings.data_dir,
    )
    batches = list(itertools.islice(source.held_out(1), count)) or list(itertools.islice(source.calibration(1), count))
    feeds = {}
    for one in network.inputs:
        arrays = [np.asarray(entry.feed[one.name]) for entry in batches]
        if not network.dynamic:
            feeds[one.name] = np.stack(arrays)
        elif one.batched:
            feeds[one.name] = np.concatenate([np.moveaxis(array, one.batch_axis, 0) for array in arrays])
        else:
            feeds[one.name] = arrays[0][None]
    words = f"{len(batches)} samples of those that are held out ({source.words})"
    return laid_out(feeds, network.inputs, words, fixed=not network.dynamic)
