"""From a float ONNX file and samples to a Q/DQ ONNX file with its proof."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from nm2trt.artifacts import host_record, write_atomic
from nm2trt.artifacts.calibration import (
    Agreement,
    CalibrationDocument,
    CompileRecord,
    ModelFile,
    Sensitivity,
    document_path,
)
from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.calibration.agreement import OutputChecker
from nm2trt.calibration.as_given import check_against_given, find_clipped
from nm2trt.calibration.cache import read_cache
from nm2trt.calibration.collection import collect, ranges_of, scales_of
from nm2trt.calibration.feeds import Batch, Source, random_feed
from nm2trt.calibration.files import check_target, model_file
from nm2trt.calibration.graph import Graph, Layer, load_proto, open_float_graph
from nm2trt.calibration.insertion import Storage, insert
from nm2trt.calibration.placement import Placement, place
from nm2trt.calibration.proof import chosen_layers, layer_records, pattern_problems, sparse_weights, tensor_ranges
from nm2trt.calibration.ranges import LEVELS, Method
from nm2trt.calibration.sensitivity import rank, within_drop
from nm2trt.calibration.sessions import Runner, with_outputs
from nm2trt.calibration.settings import Settings
from nm2trt.calibration.sources import open_data
from nm2trt.calibration.statistics import TensorStatistics
from nm2trt.calibration.stripping import without_quantization
from nm2trt.errors import ConfigError, InputError
from nm2trt.layers.sources import foreign_error
from nm2trt.selectors import check_globs, selectable_names
from nm2trt.verify import CheckResult, verify_path

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, samples or layers done, of how many)."""
Compile = Callable[[Path, Graph, Placement, dict[str, tuple[int, ...]]], CompileRecord | None]
"""Called with the result, the float graph, the placement, and the shape of one sample's input, for free sizes."""

_BATCH_BYTES = 128 * 2**20
_LARGEST_BATCH = 64
_SENSITIVITY_SAMPLES = 64
_FIRST_BATCHES = 8
_LISTED = 5


@dataclass
class _Work:
    """What is known so far; statistics are gathered as tensors are asked for."""

    graph: Graph
    settings: Settings
    source: Source | None
    progress: Progress
    before: CheckResult
    size: int = 1
    notes: list[str] = field(default_factory=list)
    statistics: dict[str, TensorStatistics] = field(default_factory=dict)
    cached: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def place(self, layers: tuple[Layer, ...]) -> Placement:
        return place(self.graph, self.settings.rules, layers, sparse_weights(self.before))

    def scales(self, placement: Placement) -> dict[str, float]:
        """Choose the scale of every tensor of a placement; runs the calibration samples for those not seen yet."""
        missing = [name for name in placement.edges if name not in self.statistics and name not in self.cached]
        if missing and self.source is None:
            raise InputError(
                f"has no scale for {len(missing)} of {len(placement.edges)} tensors, first {missing[0]!r}",
                where=self.settings.cache,
                hint="give --data for those, or check that the cache belongs to this model",
            )
        if missing:
            self.statistics |= collect(self.graph, missing, self._feeds(), self._collected)
        measured = {name: stats for name, stats in self.statistics.items() if name in placement.edges}
        ranges = ranges_of(measured, Method.parse(self.settings.method))
        ranges |= {name: scale * LEVELS for name, scale in self.cached.items() if name in placement.edges}
        return scales_of(ranges, placement)

    def model(self, placement: Placement, **options: Any) -> onnx.ModelProto:
        storage: Storage = "int8" if self.settings.weights == "int8" else "qdq"
        return insert(self.graph, placement, self.scales(placement), storage=storage, **options)

    def held_out(self) -> Iterator[Batch]:
        assert self.source is not None
        return self.source.held_out(self.size)

    def first_samples(self) -> Iterator[Batch]:
        """Calibration samples for the ranking, so that held-out ones stay unseen."""
        assert self.source is not None
        done = 0
        for batch in self.source.calibration(min(self.size, _SENSITIVITY_SAMPLES)):
            if done >= _SENSITIVITY_SAMPLES:
                return
            done += batch.count
            yield batch

    def _feeds(self) -> Iterator[tuple[dict[str, Any], int]]:
        assert self.source is not None
        for batch in self.source.calibration(self.size):
            yield batch.feed, batch.count

    def _collected(self, done: int) -> None:
        self.samples = max(self.samples, done)
        self.progress("calibrating", done, self.settings.samples)


def calibrate(
    model: Path,
    output: Path,
    settings: Settings,
    *,
    force: bool = False,
    progress: Progress = lambda *_: None,
    compile_check: Compile | None = None,
    layer_ranges: Mapping[str, float] | None = None,
) -> CalibrationDocument:
    """Quantize a float ONNX model; OUT.onnx and OUT.calibration.json appear together or not at all.

    Args:
        model: Float32 or float16 ONNX, or a folder of `nm2trt export`.
        output: `.onnx` to write.
        settings: See `Settings`.
        force: Replace an output that nm2trt wrote.
        progress: Told of samples and layers done.
        compile_check: Called with the result, the float graph and the placement.
        layer_ranges: Layer name -> range of its input, instead of one from samples (quantization-aware training).

    Returns:
        What was written as OUT.calibration.json; a failed check is a verdict, and the files are still there.

    Raises:
        ConfigError: Wrong options, or the output exists.
        InputError: The model or the samples cannot be used; nothing is written.
    """
    started = time.perf_counter()
    model = model_file(model)
    check_target(model, output, force=force)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.partial-", dir=output.parent) as staging:
        folder = Path(staging)
        work = _open(model, folder, settings, progress)
        work.cached |= _input_scales(work.graph, layer_ranges or {})
        placement, sensitivity, kept, agreement = _decided(work, _layers(work))
        why_not = chosen_layers(work.graph, settings.exclude, kept)[1]
        note = {"method": settings.method, "placement": settings.placement, "weights": settings.weights}
        result = _written(work.model(placement, note=note), folder / "result" / output.name)
        after = verify_path(result, source=output.name)
        compiled = compile_check(result, work.graph, placement, work.shapes) if compile_check is not None else None
        records = layer_records(work.graph, placement, work.before, after, why_not)
        problems = (*pattern_problems(records), *_misses(settings, agreement, compiled))
        document = CalibrationDocument(
            source=ModelFile.of(model),
            output=ModelFile.of(result),
            layers=records,
            agreement=agreement,
            sensitivity=tuple(sensitivity),
            kept_float=tuple(layer.name for layer in kept),
            compiled=compiled,
            problems=problems,
            verdict="fail" if problems else "pass",
            seconds=time.perf_counter() - started,
            host=host_record(),
            **_how(work, placement),
        )
        write_atomic(document_path(output), document.to_json())
        shutil.move(result, output)
    return document


def _layers(work: _Work) -> tuple[Layer, ...]:
    check_globs(
        [selectable_names(layer.name, layer.weight) for layer in work.graph.layers],
        work.settings.exclude,
        where="--exclude",
    )
    layers, _ = chosen_layers(work.graph, work.settings.exclude)
    if not layers:
        raise ConfigError("leaves no layer to quantize", where="--exclude")
    return layers


def _written(proto: onnx.ModelProto, path: Path) -> Path:
    path.parent.mkdir()
    path.write_bytes(proto.SerializeToString())
    return path


def _how(work: _Work, placement: Placement) -> dict[str, Any]:
    """Fields of the document that say how ranges and places were chosen."""
    settings = work.settings
    return {
        "data": work.source.words if work.source is not None else "none",
        "method": f"cache {settings.cache.name}" if settings.cache is not None else str(Method.parse(settings.method)),
        "placement": settings.placement,
        "weights": settings.weights,
        "samples": work.samples,
        "tensors": tensor_ranges(placement, work.scales(placement), work.statistics),
        "notes": tuple(work.notes),
    }


def _open(model: Path, folder: Path, settings: Settings, progress: Progress) -> _Work:
    """Open model and samples; everything a user can get wrong is found here or in the first batch."""
    progress("opening the model", 0, 0)
    if model.is_dir():
        hint = "pass an .onnx file, or a folder of `nm2trt export`"
        raise foreign_error(model) or InputError(f"holds no {ONNX_FILE}", where=model, hint=hint)
    if not model.is_file():
        raise InputError("no such file" if not model.exists() else "is no file", where=model, hint="pass an .onnx file")
    graph, checked, notes = _float_graph(model, folder, settings)
    source = None
    if settings.data is not None:
        source = _source(settings, graph)
    if settings.resymmetrize and (clipped := find_clipped(model, _first_feeds(graph, source))):
        graph, checked, notes = _float_graph(model, folder, settings, clipped)
    work = _Work(graph, settings, source, progress, verify_path(checked, source=model.name), notes=notes)
    if settings.cache is not None:
        work.cached = read_cache(settings.cache)
    if source is not None:
        work.size = _batch_size(work, source)
    feed = next(_first_feeds(graph, source, work.size), None)
    if feed is not None:
        check_against_given(graph, feed, resymmetrized=settings.resymmetrize)
    return work


def _float_graph(
    model: Path, folder: Path, settings: Settings, clipped: Mapping[str, tuple[float, float]] | None = None
) -> tuple[Graph, Path, list[str]]:
    """The graph that is calibrated, the file whose pattern counts, and notes on what was done to it."""
    if not settings.resymmetrize:
        return open_float_graph(model), model, []
    checked = folder / "float.onnx"
    restored: list[str] = []
    checked.write_bytes(without_quantization(load_proto(model), model, restored, clipped or {}).SerializeToString())
    notes = ["the model's own quantization was taken out; ranges and scales are new, zero points 0"]
    if restored:
        notes.append(
            f"put back the Relu or Clip that was folded into the quantization of {len(restored)} tensors: "
            f"{', '.join(restored[:_LISTED])}{' and others' if len(restored) > _LISTED else ''}"
        )
    graph = open_float_graph(checked)
    graph.path = model
    return graph, checked, notes


def _source(settings: Settings, graph: Graph) -> Source:
    assert settings.data is not None
    source = open_data(
        settings.data,
        graph.ports,
        samples=settings.samples,
        held_out=settings.held_out,
        preprocess=settings.preprocess,
        data_dir=settings.data_dir,
    )
    if settings.max_drop is not None and source.task is None:
        raise ConfigError("needs labels, and the data hold none", where="--max-drop", hint="leave it out")
    return source


def _first_feeds(graph: Graph, source: Source | None, size: int = 1) -> Iterator[dict[str, Any]]:
    """Inputs of the first batches of samples, or noise where there are none."""
    if source is None:
        yield random_feed(graph.ports)
        return
    yield from (batch.feed for batch in itertools.islice(source.calibration(size), _FIRST_BATCHES))


def _decided(
    work: _Work, layers: tuple[Layer, ...]
) -> tuple[Placement, list[Sensitivity], list[Layer], Agreement | None]:
    """Settle which layers are INT8, by --max-drop if it was given, and checker the outcome on held-out samples."""
    placement = work.place(layers)
    scales = work.scales(placement)
    settings, path = work.settings, work.graph.path
    if work.source is None:
        work.notes.append("no samples were given, so nothing tells how well the quantized network does")
        return placement, [], [], None
    checker = OutputChecker(path, work.held_out, work.source.task, path)
    most = settings.held_out

    def agreement(chosen: Placement) -> Agreement:
        return checker.agreement(work.model(chosen), lambda done: work.progress("checking", done, most))

    found = agreement(placement)
    drop = found.drop_points
    too_much = settings.max_drop is not None and drop is not None and drop > settings.max_drop
    ranking: list[Sensitivity] = []
    if settings.sensitivity or too_much:
        alone = OutputChecker(path, work.first_samples, work.source.task, path)
        ranking = rank(work.graph, placement, scales, alone, lambda i, n: work.progress("ranking layers", i, n))
    if not too_much:
        return placement, ranking, [], found
    assert settings.max_drop is not None
    worst = [next(layer for layer in layers if layer.name == entry.layer) for entry in ranking]
    placement, kept, found = within_drop(
        worst, settings.max_drop, found, lambda rest: work.place(tuple(x for x in layers if x in rest)), agreement
    )
    work.notes.append("--max-drop counted the drop on the same held-out samples that the score is of")
    return placement, ranking, kept, found


def _batch_size(work: _Work, source: Source) -> int:
    """Choose how many samples run at once: so that their activations take about 128 MiB."""
    first = next(iter(source.calibration(1)), None)
    if first is None:
        raise InputError(
            "there is no sample to calibrate with, or fewer than the network's fixed batch", where="--data"
        )
    work.shapes = {name: array.shape for name, array in first.feed.items()}
    ports = work.graph.ports
    # A speed or a sample rate has no batch; it fixes none beside inputs that have one.
    free = any(port.batch_axis is not None for port in ports)
    fixed = None if free else next((port.batch for port in ports if port.batch is not None), None)
    if fixed is not None or work.settings.batch_size is not None:
        return fixed or work.settings.batch_size or 1
    fed = set(first.feed)
    placement = work.place(tuple(work.graph.layers))
    tensors = [name for name in placement.edges if name not in fed]
    if not tensors:
        return _LARGEST_BATCH
    arrays = Runner(with_outputs(work.graph, tensors), work.graph.path).run(first.feed)
    bytes_each = max(1, sum(array.nbytes for array in arrays) // max(first.count, 1))
    return max(1, min(_LARGEST_BATCH, _BATCH_BYTES // bytes_each))


def _input_scales(graph: Graph, layer_ranges: Mapping[str, float]) -> dict[str, float]:
    """Tensor -> scale, from ranges by layer; of several layers that read one tensor, the largest range counts."""
    by_name = {layer.name: layer for layer in graph.layers}
    scales: dict[str, float] = {}
    for name, reach in layer_ranges.items():
        layer = by_name.get(name)
        if layer is None:
            raise InputError(
                f"holds no layer {name!r}",
                where=graph.path,
                hint="export with nm2trt, which names each operator after its layer",
            )
        value = graph.nodes[layer.node].inputs[layer.data_input]
        assert value is not None
        tensor = str(value.name)
        scales[tensor] = max(scales.get(tensor, 0.0), reach / LEVELS)
    return scales


def _misses(settings: Settings, agreement: Agreement | None, compiled: CompileRecord | None) -> list[str]:
    problems = []
    drop = agreement.drop_points if agreement is not None else None
    if settings.max_drop is not None and drop is not None and drop > settings.max_drop:
        problems.append(f"the score drops by {drop:.2f} points, more than --max-drop {settings.max_drop:g}")
    problems += [one.problem for one in agreement.outputs if one.problem] if agreement is not None else []
    if compiled is not None and compiled.error is not None:
        problems.append(f"{compiled.builder} cannot build it: {compiled.error}")
    return problems
