"""Dense against sparse on one backend: opens the variants, times them, looks below, and hands over to the document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from nm2trt.artifacts import ReportDocument, RunnerRecord
from nm2trt.artifacts.report import DeviceState, VariantName, has_zeros
from nm2trt.artifacts.report_layers import RooflineRecord
from nm2trt.errors import ConfigError
from nm2trt.onnx_tools.graph_compare import check_same_graph, fill_pruned, zero_share
from nm2trt.profile import statistics
from nm2trt.profile.config import ProfileConfig
from nm2trt.profile.device_state import cpu_state, gpu_state, mig_slice, watch_throttling
from nm2trt.profile.layers import layer_tables
from nm2trt.profile.load import measure_load
from nm2trt.profile.measure import LONGEST_SHARE, measure
from nm2trt.profile.report_builder import BatchMeasurement, Found, VariantExtras, document
from nm2trt.profile.roofline import known_roofline, measured_roofline
from nm2trt.profile.runners.runner import Runner, align_graphs
from nm2trt.profile.source import Source, read_source
from nm2trt.profile.variants import Variants, choose_backend, make_variants, with_reference

Progress = Callable[[str, float], None]

_FILLED_NOTE = (
    "No dense-trained network was given: the sparse network's zeros were filled with draws from the same layer's "
    "non-zeros. Good for timing only; its outputs mean nothing."
)
_NOTHING_FILLED_NOTE = (
    "No dense-trained network was given, and this one has no zeros that could be filled: both variants run the same "
    "weights, and the measurement is of nothing but noise."
)
_EXTRA_CALLS = 30
_CPU = "CPUExecutionProvider"


def profile(
    sparse: Path,
    config: ProfileConfig,
    *,
    dense: Path | None = None,
    reference: Path | None = None,
    progress: Progress = lambda _what, _share: None,
) -> ReportDocument:
    """Time a sparse-trained network against a dense one.

    Args:
        sparse: Build folder or ONNX file of the sparse-trained network.
        config: Backend, batch sizes, duration, seed, and what else to measure.
        dense: Same of the dense-trained network. None: on ONNX Runtime the sparse network's zeros are filled instead;
            on TensorRT the sparse weights without the flag are the baseline.
        reference: Run folder whose module is timed in PyTorch beside the others.
        progress: Called with (what is measured, share of it done).

    Raises:
        ConfigError: The duration is too short for an interval, or --shape names no input.
        InputError: An input cannot be read, the two are not the same graph, or a batch does not fit.
        MachineError: The backend is not on this machine.
    """
    sparse_source = read_source(sparse)
    _check_shapes(sparse_source, config)
    backend, choice = choose_backend(config.backend, sparse_source)
    dense_source = _dense_source(sparse_source, dense, fill=backend == "onnxruntime", seed=config.seed)
    variants = make_variants(backend, sparse_source, dense_source, config)
    if reference is not None:
        variants = with_reference(variants, reference, config)
    found = _measure(variants, config, progress)
    return document(
        found,
        variants,
        config,
        sparse_source,
        dense_source,
        choice=choice,
        dense_given=dense is not None,
        reference=reference,
    )


def _check_shapes(source: Source, config: ProfileConfig) -> None:
    graph = source.model.graph
    names = [value.name for value in graph.input if value.name not in {tensor.name for tensor in graph.initializer}]
    unknown = [name for name in config.shapes if name not in names]
    if unknown:
        raise ConfigError(
            f"no input {', '.join(map(repr, unknown))}", where="--shape", hint=f"the inputs are {', '.join(names)}"
        )


def _dense_source(sparse: Source, dense: Path | None, *, fill: bool, seed: int) -> Source | None:
    if dense is not None:
        source = read_source(dense)
        check_same_graph(source.model, sparse.model, where=f"{dense} and {sparse.record.name}")
        return source
    if not fill:
        return None
    model = fill_pruned(sparse.model, seed=seed)
    changes = {
        "kind": "filled",
        "note": _FILLED_NOTE if has_zeros(sparse.record) else _NOTHING_FILLED_NOTE,
        "zero_share": zero_share(model),
        "method": None,
        "pattern": None,
    }
    return Source(path=sparse.path, model=model, record=sparse.record.model_copy(update=changes), build=None)


def _measure(variants: Variants, config: ProfileConfig, progress: Progress) -> Found:
    batches: dict[int, list[BatchMeasurement]] = {batch: [] for batch in config.batches}
    found: Found | None = None
    for build in range(config.rebuilds):
        with ExitStack() as stack:
            runners: dict[VariantName, Runner] = {}
            for name, factory in variants.factories.items():
                runners[name] = factory(build)
                stack.callback(runners[name].close)
            record = _try_all(runners, config)
            for batch in config.batches:
                count = f", build {build + 1} of {config.rebuilds}" if config.rebuilds > 1 else ""
                watch = partial(progress, f"batch {batch}{count}")
                batches[batch].append(_measure_batch(runners, record, batch, config, watch))
            if build == config.rebuilds - 1:
                found = _look_below(runners, record, variants, config, batches, progress)
    if found is None:
        raise ValueError("no build was measured")
    return found


def _try_all(runners: Mapping[VariantName, Runner], config: ProfileConfig) -> RunnerRecord:
    """Try every batch before any is timed, so that a wrong one, or too short a time for one, costs no minutes.

    Raises:
        ConfigError: The slowest batch cannot make enough rounds in its time.
    """
    needed_s = {}
    for batch in config.batches:
        round_ms = 0.0
        _prepare_all(runners, batch)
        for runner in _split(runners)[0].values():
            round_ms += min(runner.run_once() for _ in range(3))
        # Each variant of a round makes an untimed call and at least one that counts.
        needed_s[batch] = 2 * round_ms / 1000 * statistics.MIN_ROUNDS / LONGEST_SHARE
    worst = max(needed_s, key=lambda batch: needed_s[batch])
    if needed_s[worst] > config.duration_s:
        raise ConfigError(
            f"--duration {config.duration_s:g} is too short: at batch {worst} it holds fewer than the "
            f"{statistics.MIN_ROUNDS} rounds that an interval needs",
            hint=f"use --duration {np.ceil(1.2 * needed_s[worst]):g}, or a smaller --batch",
        )
    return runners["sparse"].record


def _prepare_all(runners: Mapping[VariantName, Runner], batch: int) -> None:
    for runner in runners.values():
        runner.prepare(batch)
    align_graphs(runners.values())


def _measure_batch(
    runners: Mapping[VariantName, Runner],
    record: RunnerRecord,
    batch: int,
    config: ProfileConfig,
    progress: Callable[[float], None],
) -> BatchMeasurement:
    _prepare_all(runners, batch)
    before = _state(record)
    variants, references = _split(runners)
    with watch_throttling(lambda: _state(record)) as throttled:
        measured = measure(variants, duration_s=config.duration_s, seed=config.seed, progress=progress)
    after = throttled.added_to(_state(record))
    if references:
        # Apart from the rounds: a slow reference would take the others' time, and its threads their cores.
        apart = measure(references, duration_s=config.duration_s, seed=config.seed, progress=progress)
        measured = replace(measured, latency_ms=measured.latency_ms | apart.latency_ms)
    extras = {name: _extras(runner) for name, runner in runners.items()}
    return BatchMeasurement(measured=measured, extras=extras, before=before, after=after)


def _split(runners: Mapping[VariantName, Runner]) -> tuple[dict[VariantName, Runner], dict[VariantName, Runner]]:
    """Tell the variants that are compared from the references in PyTorch."""
    variants = {name: runner for name, runner in runners.items() if not name.startswith("torch-")}
    return variants, {name: runner for name, runner in runners.items() if name not in variants}


def _extras(runner: Runner) -> VariantExtras:
    """Transfers and launches, in calls of their own: their clocks would disturb the paired rounds."""
    transfers = [runner.run_with_transfers() for _ in range(_EXTRA_CALLS if runner.run_with_transfers() else 0)]
    launches = []
    if runner.enqueue_ms() is not None:
        for _ in range(_EXTRA_CALLS):
            runner.run_once()
            launches.append(runner.enqueue_ms() or 0.0)
    timed = np.array([one for one in transfers if one is not None], dtype=np.float64)
    return VariantExtras(
        with_transfers=statistics.spread(timed) if timed.size else None,
        enqueue_ms=float(np.median(launches)) if launches else None,
        memory_bytes=runner.memory_bytes(),
    )


def _look_below(
    runners: Mapping[VariantName, Runner],
    record: RunnerRecord,
    variants: Variants,
    config: ProfileConfig,
    batches: dict[int, list[BatchMeasurement]],
    progress: Progress,
) -> Found:
    batch = max(config.batches)
    pair = {name: runners[name] for name in (variants.baseline, "sparse")}
    if config.layers or config.streams:
        _prepare_all(runners, batch)
    tables = layer_tables(pair, seed=config.seed, progress=partial(progress, "layers")) if config.layers else {}
    roofline = None
    if tables:
        roofline = _roofline(record, variants.precision)
    load = None
    if config.streams:
        load = measure_load(pair, config, batch=batch, progress=partial(progress, f"load, {config.streams} streams"))
    return Found(
        record=record,
        batches=batches,
        layers=tables,
        layers_batch=batch,
        roofline=roofline,
        multiprocessors=_multiprocessors(record),
        load=load,
    )


def _roofline(record: RunnerRecord, precision: str) -> RooflineRecord | None:
    if record.provider == _CPU:
        return measured_roofline()
    # The data sheet is the whole card's.
    return None if mig_slice() else known_roofline(record.provider, precision)


def _multiprocessors(record: RunnerRecord) -> int | None:
    if record.provider == _CPU:
        return None
    import torch

    return int(torch.cuda.get_device_properties(0).multi_processor_count) if torch.cuda.is_available() else None


def _state(record: RunnerRecord) -> DeviceState | None:
    return cpu_state() if record.provider == _CPU else gpu_state()
