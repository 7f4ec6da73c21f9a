"""How many groups of a layer hold how many non-zeros; more than a verdict needs, so it is counted only for pictures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nm2trt.layers import LayerWeight, open_source
from nm2trt.pattern import NMPattern
from nm2trt.verify.verdicts import CheckResult, LayerVerdict

_PIECE = 1 << 20

Histogram = NDArray[np.int64]
"""[M + 1]: groups with 0, 1, ... M non-zeros."""


def group_histograms(path: Path, result: CheckResult) -> list[tuple[LayerVerdict, Histogram]]:
    """Read the layers of a checked file again and count; those without groups are left out.

    Args:
        path: What was checked.
        result: Of `path`; it says by which pattern each layer is counted.

    Raises:
        InputError: A layer's values cannot be read.
    """
    checked = {(layer.name, layer.node, layer.op): layer for layer in result.layers if layer.groups}
    found = []
    for layer in open_source(path).layers():
        verdict = checked.get((layer.name, layer.node, layer.op))
        if verdict is not None and layer.reduction_axis is not None:
            found.append((verdict, histogram(layer, NMPattern.parse(verdict.pattern), layer.reduction_axis)))
    return found


def histogram(layer: LayerWeight, pattern: NMPattern, axis: int) -> Histogram:
    """Count the groups of M along `axis` by their non-zeros; M divides the axis."""
    inner = math.prod(layer.shape[axis + 1 :])
    span, size = pattern.m * inner, math.prod(layer.shape)
    step = max(1, _PIECE // max(span, 1)) * span
    whole = None if layer.load_range else np.ascontiguousarray(layer.weight()).reshape(-1)
    total = np.zeros(pattern.m + 1, np.int64)
    for start in range(0, size, max(step, 1)):
        stop = min(start + step, size)
        piece = whole[start:stop] if whole is not None else layer.load_range(start, stop)  # type: ignore[misc]
        nonzeros = np.count_nonzero(piece.reshape(-1, pattern.m, inner), axis=1)
        total += np.bincount(nonzeros.reshape(-1), minlength=pattern.m + 1)
    return total
