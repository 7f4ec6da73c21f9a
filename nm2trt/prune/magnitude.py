"""One-shot magnitude pruning of one tensor: which weights go, and how much magnitude stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.pattern import NMPattern, mask

Array = NDArray[Any]
Layout = Sequence[Callable[[Array], Array]]

PRUNABLE_DTYPES = ("float32", "float16", "bfloat16", "float64", "int8")


@dataclass(frozen=True, slots=True)
class Magnitude:
    """Sums of |w| over one tensor; of a quantized one, of its stored integers."""

    total: float
    kept: float
    """By the N:M pattern."""
    unstructured: float
    """By keeping the same number of weights wherever they are: no pattern of this density can keep more."""

    def __add__(self, other: Magnitude) -> Magnitude:
        return Magnitude(self.total + other.total, self.kept + other.kept, self.unstructured + other.unstructured)


def moved(stored: Array, layout: Layout) -> Array:
    """Bring stored values into the shape in which the operator reads them."""
    for step in layout:
        stored = step(stored)
    return stored


def pruned(stored: Array, values: Array, layout: Layout, pattern: NMPattern, axis: int) -> tuple[Array, Magnitude]:
    """Zero what the pattern does not keep; every other value keeps its bits.

    Of every group of M along the reduction axis the N largest magnitudes stay; of equal ones the lowest index.

    Args:
        stored: The tensor as the file holds it, any shape.
        values: The same in the operator's shape; a mask that lies beside the tensor is applied, and what it
            masks is zeroed too.
        layout: Steps from the stored to the operator's shape.
        pattern: Its M divides `axis` of `values`.
        axis: Reduction axis of `values`.

    Returns:
        A new array of `stored`'s shape and type, and what it kept.
    """
    sizes = comparable(values)
    keeps = mask(sizes, pattern, axis)
    # What is zero stays as it is, also -0.0.
    gone = ~(keeps & (values != 0)) & (moved(stored, layout) != 0)
    result = stored.copy()
    if layout:
        positions = moved(np.arange(stored.size, dtype=np.intp).reshape(stored.shape), layout)
        result.reshape(-1)[positions[gone]] = 0
    else:
        result[gone] = 0
    return result, _magnitude(sizes, keeps, pattern)


def magnitude_of(values: Array, pattern: NMPattern, axis: int) -> Magnitude:
    """Measure what the pattern keeps of the values, in float64."""
    sizes = comparable(values)
    return _magnitude(sizes, mask(sizes, pattern, axis), pattern)


def _magnitude(sizes: Array, keeps: NDArray[np.bool_], pattern: NMPattern) -> Magnitude:
    kept = float(np.sum(sizes, where=keeps, dtype=np.float64))
    count = sizes.size // pattern.m * pattern.n
    flat = sizes.reshape(-1)
    largest = np.partition(flat, flat.size - count)[flat.size - count :]
    return Magnitude(float(sizes.sum(dtype=np.float64)), kept, float(largest.sum(dtype=np.float64)))


def check_finite(values: Array, name: str, where: object) -> None:
    """Refuse NaN and infinity, whose magnitudes have no order.

    Raises:
        InputError: One is there; the first is named with its index.
    """
    if values.dtype.kind in "iu":
        return
    bad = ~np.isfinite(values)
    if bad.any():
        index = [int(i) for i in np.unravel_index(int(bad.argmax()), values.shape)]
        raise InputError(
            f"weight {name!r} holds {int(np.count_nonzero(bad))} NaN or infinite values, the first at {index}: "
            f"{float(values[tuple(index)])}",
            where=where,
            hint=f"leave it dense with --exclude {name!r}, or repair the file",
        )


def group_positions(shape: tuple[int, ...], layout: Layout, axis: int, m: int) -> NDArray[np.intp]:
    """Stored positions of every group, sorted, so that two uses of one tensor can be compared.

    Returns:
        [groups, M].
    """
    count = int(np.prod(shape, dtype=np.int64))
    positions = moved(np.arange(count, dtype=np.intp).reshape(shape), layout)
    groups = np.sort(np.moveaxis(positions, axis, -1).reshape(-1, m), axis=1)
    return groups[np.argsort(groups[:, 0])]


def comparable(values: Array) -> Array:
    """Magnitudes in a type that holds them exactly and sorts fast."""
    wide = np.float64 if values.dtype == np.float64 else np.float32
    sizes: Array = np.abs(values.astype(wide))
    return sizes
