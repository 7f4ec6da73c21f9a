"""Ranges around an estimate: from errors of engines and GPUs that were held back from the fit."""

from __future__ import annotations

from typing import Literal

from nm2trt.estimate.constants import KernelConstants, Spread
from nm2trt.estimate.gpus import Precision

What = Literal["dense", "sparse", "gain", "total", "ratio"]

LEAST_TOTAL, LEAST_RATIO = 0.25, 0.34
"""Of a whole network: share of its time either way, and width of its ratio's range. No network of a user's was
recorded, and releases of TensorRT alone move both by as much."""
TYPICAL_SHARE = 0.7
"""Of the time in layers that can be sparse, in the networks that the ratio's range comes from."""
_UNKNOWN = Spread(low=0.85, high=1.15)


def spread_for(fitted: KernelConstants, what: What, *details: str, far: bool) -> Spread:
    """The most specific range there is.

    Args:
        fitted: Constants with their spreads.
        what: Of what.
        details: Narrower names, the best one first: "gemm", "int8".
        far: On a GPU that no point of the fit is of; without a range of its own that of the others is squared.
    """
    names = [*(f"{what}.{detail}" for detail in details), what]
    if far:
        for name in names:
            if f"{name}.far" in fitted.spread:
                near = fitted.spread.get(name, fitted.spread[f"{name}.far"])
                own = fitted.spread[f"{name}.far"]
                return Spread(low=min(near.low, own.low), high=max(near.high, own.high))
    found = next((fitted.spread[name] for name in names if name in fitted.spread), _UNKNOWN)
    return Spread(low=found.low**2, high=found.high**2) if far else found


def product_ranges(
    fitted: KernelConstants, kind: str, precision: Precision, ratio: float, *, far: bool
) -> tuple[Spread, Spread]:
    """Ranges of a single product: of its dense time, as a factor, and of its ratio, in full."""
    details = names_for(kind, precision)
    gain = spread_for(fitted, "gain", *details, far=far)
    return spread_for(fitted, "dense", *details, far=far), Spread(low=ratio * gain.low, high=ratio * gain.high)


def names_for(kind: str, precision: Precision) -> tuple[str, ...]:
    """What narrows the range of one layer down."""
    nearest = {"bf16": "fp16", "fp8": "int8"}.get(precision, precision)
    return ("gemm",) if kind in ("gemm", "batched-matmul") else (nearest,)


def total_ranges(
    fitted: KernelConstants, ratio: float, *, far: bool, sparse_share: float = TYPICAL_SHARE
) -> tuple[Spread, Spread]:
    """Ranges of a whole network: of its dense time, as a factor, and of its ratio, in full.

    Args:
        fitted: Constants with their spreads.
        ratio: Estimated, dense over sparse.
        far: Neither the GPU nor its like is in the fit.
        sparse_share: Of the dense time in layers that can have a sparse kernel: what cannot change does not spread.
    """
    total = spread_for(fitted, "total", far=far and "ratio" not in fitted.spread)
    total = Spread(low=min(total.low, 1 - LEAST_TOTAL), high=max(total.high, 1 + LEAST_TOTAL))
    own = fitted.spread.get("ratio")
    spread = own or spread_for(fitted, "gain", far=far)
    part = min(1.0, sparse_share / TYPICAL_SHARE)
    low, high = ratio * spread.low**part, ratio * spread.high**part
    width = high - low
    wider = max(1.0, LEAST_RATIO * part / width) if width else 1.0
    return total, Spread(low=ratio - wider * (ratio - low), high=ratio + wider * (high - ratio))
