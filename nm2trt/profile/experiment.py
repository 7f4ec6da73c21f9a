"""Dense against sparse on one backend: the arms, the measurement, the document."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib import util
from pathlib import Path
from typing import Literal

from nm2trt.artifacts import (
    BatchRecord,
    Fact,
    Facts,
    FactState,
    NetworkRecord,
    ProtocolRecord,
    ReportDocument,
    RunnerRecord,
    host_record,
)
from nm2trt.errors import MachineError
from nm2trt.profile import statistics
from nm2trt.profile.config import ProfileConfig
from nm2trt.profile.graph import check_same_graph, fill_pruned, precision_of, zero_share
from nm2trt.profile.measure import measure
from nm2trt.profile.onnxruntime_runner import OnnxRuntimeRunner, best_device
from nm2trt.profile.runner import Runner
from nm2trt.profile.source import Source, read_source

Arm = Literal["dense", "sparse", "sparse-again"]
ARMS: tuple[Arm, ...] = ("dense", "sparse", "sparse-again")

_FILLED_NOTE = (
    "No dense-trained network was given: the sparse network's zeros were filled with draws from the same layer's "
    "non-zeros. Good for timing only; its outputs mean nothing."
)


def choose_backend(wanted: str) -> tuple[Literal["onnxruntime"], str]:
    """Return the backend that will run and the reason in words.

    Raises:
        MachineError: TensorRT was asked for; the line says what is missing.
    """
    missing = _missing_for_tensorrt()
    if wanted == "tensorrt":
        raise MachineError(f"--backend tensorrt: {missing}", mend="use --backend onnxruntime")
    if wanted == "onnxruntime":
        return "onnxruntime", "onnxruntime was asked for"
    return "onnxruntime", f"auto picked onnxruntime: for TensorRT {missing}"


def profile(
    sparse: Path,
    config: ProfileConfig,
    *,
    dense: Path | None = None,
    progress: Callable[[int, float], None] = lambda _batch, _share: None,
) -> ReportDocument:
    """Time a sparse-trained network against a dense one.

    Args:
        sparse: Build folder or ONNX file of the sparse-trained network.
        config: Backend, batch sizes, duration, seed.
        dense: Same of the dense-trained network; None fills the sparse network's zeros instead.
        progress: Called with (batch size, share of it done).

    Raises:
        InputError: An input cannot be read, the two are not the same graph, or a batch does not fit.
        MachineError: The backend is not on this machine.
    """
    _, choice = choose_backend(config.backend)
    sparse_source = read_source(sparse)
    dense_source = _dense_source(sparse_source, dense, seed=config.seed)
    device = best_device()
    models = {"dense": dense_source.model, "sparse": sparse_source.model, "sparse-again": sparse_source.model}
    names = {"dense": dense_source.record.name, "sparse": sparse_source.record.name}
    with ExitStack() as stack:
        runners: dict[str, Runner] = {}
        for arm in ARMS:
            runners[arm] = OnnxRuntimeRunner(models[arm], name=names.get(arm, names["sparse"]), device=device)
            stack.callback(runners[arm].close)
        record = runners["sparse"].record
        for batch in config.batches:
            # Every batch is tried before any is timed, so that a wrong one costs no minutes.
            for runner in runners.values():
                runner.prepare(batch)
        batches = [_measure_batch(runners, batch, config, record, partial(progress, batch)) for batch in config.batches]
    return _document(sparse_source, dense_source, config, choice, record, batches, with_dense=dense is not None)


def _missing_for_tensorrt() -> str:
    if util.find_spec("tensorrt") is None:
        return "the package tensorrt is not installed (pip install 'nm2trt[tensorrt]', on a machine with an NVIDIA GPU)"
    return "this version of nm2trt has no runner yet"


def _dense_source(sparse: Source, dense: Path | None, *, seed: int) -> Source:
    if dense is None:
        model = fill_pruned(sparse.model, seed=seed)
        record = sparse.record.model_copy(
            update={
                "kind": "filled",
                "note": _FILLED_NOTE,
                "zero_share": zero_share(model),
                "method": None,
                "pattern": None,
            }
        )
        return Source(model=model, record=record, build=None)
    source = read_source(dense)
    check_same_graph(source.model, sparse.model, where=f"{dense} and {sparse.record.name}")
    return source


def _measure_batch(
    runners: dict[str, Runner],
    batch: int,
    config: ProfileConfig,
    record: RunnerRecord,
    progress: Callable[[float], None],
) -> BatchRecord:
    for runner in runners.values():
        runner.prepare(batch)
    measured = measure(runners, duration_s=config.duration_s, seed=config.seed, progress=progress)
    timings = measured.latency_ms
    comparison = statistics.compare(timings["dense"], timings["sparse"], timings["sparse-again"], seed=config.seed)
    return BatchRecord(
        batch=batch,
        rounds=measured.rounds,
        calls_per_round=measured.calls_per_round,
        warmup_s=measured.warmup_s,
        steady=measured.steady,
        arms=tuple(statistics.summarise(arm, timings[arm], batch=batch) for arm in ARMS),
        ratio=comparison.ratio,
        noise=comparison.noise,
        noise_floor=comparison.noise_floor,
        finding=comparison.finding,
        sentence=statistics.sentence(comparison, rounds=measured.rounds, sparse_kernels=record.sparse_kernels),
    )


def _document(
    sparse: Source,
    dense: Source,
    config: ProfileConfig,
    choice: str,
    record: RunnerRecord,
    batches: list[BatchRecord],
    *,
    with_dense: bool,
) -> ReportDocument:
    headline = statistics.headline(
        {one.batch: one.sentence for one in batches},
        {one.batch: one.noise_floor for one in batches},
        {one.batch: one.finding for one in batches},
    )
    return ReportDocument(
        sparse=sparse.record,
        dense=dense.record,
        precision=precision_of(sparse.model),
        runner=record,
        backend_choice=choice,
        protocol=ProtocolRecord(
            duration_s=config.duration_s,
            seed=config.seed,
            confidence=statistics.CONFIDENCE,
            resamples=statistics.RESAMPLES,
        ),
        batches=batches,
        headline=headline,
        facts=facts(sparse, record, headline),
        command=_command(sparse.record, dense.record if with_dense else None, config),
        host=host_record(),
    )


def facts(sparse: Source, record: RunnerRecord, headline: str) -> Facts:
    """State the four facts: the first two as the build proved them, the others as observed in this run."""
    unjudged = Fact(
        state=FactState.UNKNOWN,
        evidence="a bare ONNX file was profiled and nothing judged it here; nm2trt verify does",
    )
    known = sparse.build.facts if sparse.build else None
    where = f"ONNX Runtime {record.version}, {record.provider}"
    if record.sparse_kernels is False:
        chosen = Fact(
            state=FactState.DISPROVED,
            evidence=f"in this run ({where}): no 2:4 kernels exist there, so none ran; "
            "TensorRT's choice was not observed",
        )
    else:
        chosen = Fact(state=FactState.UNKNOWN, evidence=f"in this run ({where}): the kernels that ran are not reported")
    faster = Fact(
        state=FactState.UNKNOWN,
        evidence=f"a gain from sparsity cannot show in this run ({where}). Measured: {headline}",
    )
    return Facts(
        legal=known.legal if known else unjudged,
        eligible=known.eligible if known else unjudged,
        chosen=chosen,
        faster=faster,
    )


def _command(sparse: NetworkRecord, dense: NetworkRecord | None, config: ProfileConfig) -> str:
    words = ["nm2trt", "profile", sparse.name]
    if dense is not None:
        words += ["--dense", dense.name]
    words += ["--backend", "onnxruntime", "--batch", ",".join(map(str, config.batches))]
    words += ["--duration", f"{config.duration_s:g}", "--seed", str(config.seed), "-o", "report"]
    return shlex.join(words)
