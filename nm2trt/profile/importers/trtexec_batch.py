"""The end-to-end comparison of trtexec's runs: from single calls where they were exported, else from its summaries."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nm2trt.artifacts import BatchRecord, VariantRecord
from nm2trt.artifacts.ratio import RatioRecord
from nm2trt.artifacts.report import Finding, SpreadRecord, VariantName
from nm2trt.evidence.trtexec import TrtexecRun
from nm2trt.evidence.trtexec_log import TimingSummary
from nm2trt.profile import statistics
from nm2trt.profile.findings import Kernels, kernel_words, ratio_words

NO_NOISE = RatioRecord(value=1.0, low=0.0, high=float("inf"))


def batch_record(runs: Mapping[VariantName, TrtexecRun], batch: int, kernels: Kernels, seed: int) -> BatchRecord | None:
    """Compare the runs' GPU compute times; None where one of dense and sparse has none.

    Where a run has only trtexec's summary, all are compared by medians: two runs, no interval, no finding.
    """
    if any(name not in runs or not is_timed(runs[name]) for name in ("dense", "sparse")):
        return None
    timed = {name: run for name, run in runs.items() if is_timed(run)}
    if all(run.compute_ms is not None and run.compute_ms.size for run in timed.values()):
        return _from_calls(timed, batch, kernels, seed)
    return _from_summaries(timed, batch, kernels)


def is_timed(run: TrtexecRun) -> bool:
    """Whether a file tells GPU compute times of whole calls."""
    if run.compute_ms is not None and run.compute_ms.size:
        return float(np.median(run.compute_ms)) > 0
    return run.summary is not None and run.summary.median_ms > 0 and run.summary.mean_ms > 0


def _from_calls(timed: Mapping[VariantName, TrtexecRun], batch: int, kernels: Kernels, seed: int) -> BatchRecord:
    calls_ms = {name: run.compute_ms for name, run in timed.items() if run.compute_ms is not None}
    ratio = statistics.unpaired_ratio(calls_ms["dense"], calls_ms["sparse"], seed=seed)
    noise = NO_NOISE
    if "sparse-repeat" in calls_ms:
        noise = statistics.unpaired_ratio(calls_ms["sparse-repeat"], calls_ms["sparse"], seed=seed + 1)
    checked = statistics.classify_ratio(ratio, noise, rounds=statistics.MIN_ROUNDS)
    if "sparse-repeat" not in calls_ms:
        finding: Finding = "unpaired"
        words = (
            f"the sparse run was {ratio_words(ratio)} of the dense one's speed, in two separate runs without an A/A "
            f"run{kernel_words(kernels)}"
        )
    else:
        finding = checked.finding
        noise_words = f"A/A noise {100 * checked.noise_floor:.1f} %"
        words = f"no difference beyond what two runs of one engine differ by ({noise_words})"
        if finding != "no-difference":
            words = f"sparse is {ratio_words(ratio)} ({noise_words}){kernel_words(kernels)}"
    variants = tuple(_arm_of_calls(name, timed[name], calls, batch) for name, calls in calls_ms.items())
    return _record(batch, variants, ratio, noise, checked.noise_floor, finding, words)


def _from_summaries(timed: Mapping[VariantName, TrtexecRun], batch: int, kernels: Kernels) -> BatchRecord:
    variants = {name: _arm_of_summary(name, run, batch) for name, run in timed.items()}
    value = variants["dense"].median_ms / variants["sparse"].median_ms
    ratio = RatioRecord(value=value, low=0.0, high=float("inf"))
    again = ""
    if "sparse-repeat" in variants:
        apart = variants["sparse-repeat"].median_ms / variants["sparse"].median_ms
        again = f"; the second sparse run differs from the first by {100 * abs(apart - 1):.1f} %"
    medians = f"{variants['dense'].median_ms:.4g} against {variants['sparse'].median_ms:.4g} ms"
    words = (
        f"the sparse run was {value:.2f}x of the dense one's speed by median GPU compute time, {medians}: two runs, no "
        f"interval, so no verdict{again}{kernel_words(kernels)}"
    )
    return _record(batch, tuple(variants.values()), ratio, NO_NOISE, float("inf"), "unpaired", words)


def _record(
    batch: int,
    variants: tuple[VariantRecord, ...],
    ratio: RatioRecord,
    noise: RatioRecord,
    noise_floor: float,
    finding: Finding,
    sentence: str,
) -> BatchRecord:
    return BatchRecord(
        batch=batch,
        rounds=0,
        calls_per_round=0,
        warmup_s=0.0,
        steady=True,
        variants=variants,
        ratio=ratio,
        noise=noise,
        noise_floor=noise_floor,
        finding=finding,
        sentence=sentence,
    )


def _arm_of_calls(name: VariantName, run: TrtexecRun, calls_ms: statistics.Timings, batch: int) -> VariantRecord:
    enqueue_ms = float(np.median(run.enqueue_ms)) if run.enqueue_ms is not None and not run.toggles.graph else None
    return statistics.summarize(name, calls_ms, batch=batch).model_copy(
        update={
            "with_transfers": statistics.spread(run.latency_ms) if run.latency_ms is not None else None,
            "enqueue_ms": enqueue_ms,
        }
    )


def _arm_of_summary(name: VariantName, run: TrtexecRun, batch: int) -> VariantRecord:
    if run.compute_ms is not None and run.compute_ms.size:
        return _arm_of_calls(name, run, run.compute_ms, batch)
    summary = run.summary
    if summary is None:
        raise ValueError("a run without times has no summary")
    # trtexec counts queries; with an implicit batch it counts samples itself.
    samples_per_query = 1 if run.implicit_batch is not None and run.implicit_batch == batch else batch
    printed = run.queries_per_s * samples_per_query if run.queries_per_s else None
    enqueue = run.enqueue_summary.median_ms if run.enqueue_summary is not None and not run.toggles.graph else None
    latency = run.latency_summary
    return VariantRecord(
        name=name,
        calls=summary.samples or 0,
        median_ms=summary.median_ms,
        p90_ms=summary.percentiles_ms.get(90.0),
        p99_ms=summary.percentiles_ms.get(99.0),
        mean_ms=summary.mean_ms,
        coefficient_of_variation=None,
        throughput_per_s=printed if printed is not None else 1000 * batch / summary.mean_ms,
        quantiles_ms=(),
        with_transfers=_spread(latency) if latency is not None else None,
        enqueue_ms=enqueue,
    )


def _spread(summary: TimingSummary) -> SpreadRecord:
    return SpreadRecord(
        calls=summary.samples or 0,
        median_ms=summary.median_ms,
        p90_ms=summary.percentiles_ms.get(90.0),
        p99_ms=summary.percentiles_ms.get(99.0),
    )
