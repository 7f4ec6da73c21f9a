"""What the measured products say, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nm2trt.gpu_benchmark.gpu_schema import PointRecord, SparseTimes


def best_sparse(point: PointRecord) -> SparseTimes | None:
    """The fastest 2:4 product whose kernel was seen to be sparse; None where none was."""
    chosen = [one for one in point.sparse if one.chosen]
    return min(chosen, key=lambda one: one.median_us) if chosen else None


def sentence(points: Sequence[PointRecord]) -> str:
    """Say over all dtypes where 2:4 was faster."""
    lines = [summary for dtype in ("fp16", "bf16", "int8") if (summary := dtype_summary(points, dtype))]
    return " ".join(lines) or "No product was timed."


def dtype_summary(points: Sequence[PointRecord], dtype: str) -> str:
    """Say it of one dtype; empty where nothing was timed."""
    mine = [one for one in points if one.dtype == dtype]
    if not mine:
        return ""
    seen = [(one, best) for one in mine if (best := best_sparse(one)) is not None]
    if not seen:
        return f"{dtype}: no sparse kernel ran in {len(mine)} products."
    faster = [pair for pair in seen if pair[1].finding == "sparse-faster"]
    slower = [pair for pair in seen if pair[1].finding == "sparse-slower"]
    words = (
        f"{dtype}: of {len(seen)} products with a sparse kernel {len(faster)} were faster than dense and {len(slower)} "
        "slower, beyond the noise"
    )
    if faster:
        ratios = [best.ratio.value for _, best in faster]
        rows = min(one.m for one, _ in faster)
        words += (
            f"; the gain was {np.median(ratios):.2f}x in the median and {max(ratios):.2f}x at most, from {rows} rows on"
        )
    return f"{words}."
