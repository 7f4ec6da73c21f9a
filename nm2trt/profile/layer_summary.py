"""Totals over the layers of two engines, and what they say in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from nm2trt.artifacts.ratio import RatioRecord
from nm2trt.artifacts.report_layers import LayersRecord, LayerTimeRecord
from nm2trt.profile import statistics


def summarized(rows: Sequence[LayerTimeRecord], *, batch: int, source: str, calls: int, seed: int) -> LayersRecord:
    """Add totals, and tell what also shows on layers without a sparse kernel from what does not."""
    # Layers that only the dense variant has are other layers, not more of them.
    is_pair = any(row.sparse_ms is not None for row in rows)
    own = [row for row in rows if row.sparse_ms is not None or not is_pair]
    weighted = [row for row in own if row.weighted]
    matched = sum(row.dense_ms is not None and row.sparse_ms is not None for row in weighted)
    chosen = sum(row.chosen is True for row in weighted)
    is_seen = bool(weighted) and all(row.chosen is not None for row in weighted)
    dense_ms, sparse_ms = (sum(getattr(row, key) or 0.0 for row in rows) for key in ("dense_ms", "sparse_ms"))
    with_kernel = _over(rows, seed, chosen=True)
    without_kernel = _over(rows, seed, chosen=False)
    net = None
    if with_kernel is not None and without_kernel is not None and sparse_ms:
        total = dense_ms / sparse_ms
        net = RatioRecord(
            value=total / without_kernel.value, low=total / without_kernel.high, high=total / without_kernel.low
        )
    record = LayersRecord(
        batch=batch,
        source=source,
        calls=calls,
        layers=tuple(rows),
        dense_ms=dense_ms,
        sparse_ms=sparse_ms,
        weighted=len(weighted),
        weights_unknown=sum(row.weighted is None for row in own),
        eligible=_count([row.eligible for row in weighted]),
        matched=matched,
        chosen=chosen if chosen or is_seen else None,
        with_kernel=with_kernel,
        without_kernel=without_kernel,
        net=net,
        sentence="",
    )
    return record.model_copy(update={"sentence": _sentence(record)})


def _count(states: Sequence[bool | None]) -> int | None:
    known = [state for state in states if state is not None]
    return sum(known) if known else None


def _over(rows: Sequence[LayerTimeRecord], seed: int, *, chosen: bool) -> RatioRecord | None:
    ratios = [row.ratio.value for row in rows if row.weighted and row.chosen is chosen and row.ratio is not None]
    return statistics.median_ratio(ratios, seed=seed) if len(ratios) > 1 else None


def _sentence(record: LayersRecord) -> str:
    total = f"sum of the layers {record.dense_ms:.4g} ms dense, {record.sparse_ms:.4g} ms sparse"
    if not record.sparse_ms or not record.dense_ms:
        only = record.sparse_ms or record.dense_ms
        ran = f", of which {record.chosen} run sparse kernels" if record.chosen is not None else ""
        known = f"{record.weighted} layers with weights{ran}"
        if not record.weighted and record.weights_unknown:
            known = "which layers have weights is not known"
        words = f"{known}{_unknown(record)}, sum of the layers {only:.4g} ms"
        return f"{words}; one engine, so nothing to compare"
    without = record.without_kernel
    if record.chosen is None:
        return f"{total}; which kernels ran was not observed{_unmatched(record)}"
    if record.chosen == 0:
        none = "no layer runs a sparse kernel"
        if record.weights_unknown:
            none = f"none of {record.weighted} layers with weights runs a sparse kernel{_unknown(record)}"
        words = f"{total}; {none}"
        return words + (f", and dense/sparse of their times is {_words(without)}" if without else _unmatched(record))
    words = f"{record.chosen} of {record.weighted} layers with weights run sparse kernels"
    if record.with_kernel is not None:
        words += f"; on them dense/sparse is {_words(record.with_kernel)} (median)"
    words += _unknown(record)
    unseen = sum(bool(row.weighted) and row.chosen is None and row.sparse_ms is not None for row in record.layers)
    words += f", of {unseen} it was not observed" if unseen else ""
    if without is None:
        return f"{words}; {total}{_unmatched(record)}"
    words += f"; on the others, which run dense kernels in both variants, it is {_words(without)}"
    if record.net is not None:
        words += (
            f". Of the {record.dense_ms / record.sparse_ms:.2f}x over all layers, sparse kernels account for "
            f"{record.net.value:.2f}x; the rest shows without them, too (clocks, power, another build)"
        )
    return words


def _unknown(record: LayersRecord) -> str:
    count = record.weights_unknown
    return f" ({count} more do not show whether they have any)" if record.weighted and count else ""


def _unmatched(record: LayersRecord) -> str:
    if not record.weighted or record.matched == record.weighted:
        return ""
    if not record.matched:
        return (
            "; no layer of the dense run could be matched with one of the sparse run: their names differ, as in "
            "networks that were exported apart"
        )
    return f"; {record.weighted - record.matched} of them have no counterpart in the dense run"


def _words(ratio: RatioRecord) -> str:
    return f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
