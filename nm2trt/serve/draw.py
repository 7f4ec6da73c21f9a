"""Inputs that a network takes, drawn: every row of every table, masks, lengths, noise."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.artifacts import GraphPort
from nm2trt.ort.random_inputs import draw_values, is_mask, make_mask
from nm2trt.serve.ports import numpy_type

Array = NDArray[Any]

_AFTER_COVERING = 16
_SEED = 0
_NUMBERS_BELOW = 100
"""Of integers that nothing bounds and that are no flags."""
_LENGTH = re.compile(r"(^|[_.])len(gth)?s?($|[_.\d])|lengths?$", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRange:
    """Values of an integer input."""

    below: tuple[int, ...]
    """Rows of the table that the input indexes: one number, or one for each position of the last axis. Empty where it
    is no index, and any number will do."""
    low: int = 0

    @property
    def rows(self) -> int:
        """Of the largest table."""
        return max(self.below, default=0)


Limits = Mapping[str, int | InputRange]
"""Input name -> range; a number is `below` for all positions."""


def is_length(name: str) -> bool:
    """Whether an input's name says that it is the length of a sequence."""
    return bool(_LENGTH.search(name))


def range_of(limit: int | InputRange) -> InputRange:
    """A limit in full."""
    return InputRange(below=(limit,)) if isinstance(limit, int) else limit


def draw_arrays(
    inputs: Sequence[GraphPort],
    limits: Limits,
    shapes: Mapping[str, tuple[int, ...]],
    count: int,
    *,
    most: int,
) -> tuple[int, dict[str, Array]]:
    """Draw samples, the first of which, `most` at most, look up every row of every table if they are enough.

    Args:
        inputs: Of the network.
        limits: Ranges of its integers.
        shapes: Of one sample, by input.
        count: How many samples at least.
        most: Most samples that are drawn to cover tables.

    Returns:
        How many samples, and [samples, ...] for each input; an array may hold fewer and starts again then.
    """
    ranges = {name: range_of(limit) for name, limit in limits.items() if name in shapes}
    needed = max((_samples_needed(one, shapes[name]) for name, one in ranges.items()), default=0)
    covering = min(needed, most)
    total = max(count, covering + _AFTER_COVERING if covering else 0)
    rng = np.random.default_rng(_SEED)
    longest = max((shape[-1] for shape in shapes.values() if shape), default=1)
    arrays = {}
    for port in inputs:
        kind, shape = np.dtype(numpy_type(port.dtype)), shapes[port.name]
        known = ranges.get(port.name)
        if known is not None and known.below:
            arrays[port.name] = _indices(known, (total, *shape), covering, rng).astype(kind)
        elif known is not None:
            arrays[port.name] = _numbers(known.low, (count, *shape), rng).astype(kind)
        elif is_mask(port.name) and shape:
            arrays[port.name] = make_mask((total, *shape), kind, whole=covering + 1)
        else:
            arrays[port.name] = _noise(port.name, kind, (count, *shape), longest, rng)
    return total, arrays


def at_ends(feed: Mapping[str, Array], limits: Limits) -> dict[str, Array]:
    """A request whose indices all name the last rows that they may."""
    changed = dict(feed)
    for name, limit in limits.items():
        below = range_of(limit).below
        if below and name in feed:
            ends = np.asarray(below if len(below) > 1 else below[0]) - 1
            changed[name] = np.broadcast_to(ends, feed[name].shape).astype(feed[name].dtype)
    return changed


def count_covered(array: Array, limit: int | InputRange) -> int:
    """How many rows of the largest table an input's samples look up."""
    below = range_of(limit).below
    if len(below) > 1:
        return len(np.unique(array[..., below.index(max(below))]))
    return len(np.unique(array))


def _samples_needed(one: InputRange, shape: tuple[int, ...]) -> int:
    each = max(math.prod(shape), 1) // (len(one.below) if len(one.below) > 1 else 1)
    return math.ceil(one.rows / max(each, 1))


def _indices(one: InputRange, shape: tuple[int, ...], covering: int, rng: np.random.Generator) -> Array:
    """Rows of a table; the first `covering` samples hold each at least once, if they are enough."""
    if len(one.below) > 1:
        columns = [_rows(rows, one.low, shape[:-1], covering, rng) for rows in one.below]
        return np.stack(columns, axis=-1)
    return _rows(one.below[0], one.low, shape, covering, rng)


def _rows(rows: int, low: int, shape: tuple[int, ...], covering: int, rng: np.random.Generator) -> Array:
    low = min(low, rows - 1)
    indices = rng.integers(low, rows, shape)
    first = indices[:covering].reshape(-1)
    order = low + rng.permutation(rows - low)[: first.size]
    first[: order.size] = order
    indices[:covering] = first.reshape(indices[:covering].shape)
    return indices


def _numbers(low: int, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Flags in every other sample, and numbers of two digits between."""
    numbers = rng.integers(low, low + 2, shape)
    numbers[1::2] = rng.integers(low, _NUMBERS_BELOW, numbers[1::2].shape)
    return numbers


def _noise(name: str, kind: np.dtype[Any], shape: tuple[int, ...], longest: int, rng: np.random.Generator) -> Array:
    if is_length(name) and kind.kind in "iu":
        return rng.integers(1, max(min(longest, np.iinfo(kind).max), 1) + 1, shape).astype(kind)
    if kind.itemsize == 1 and kind.kind in "iu":
        # Pixels and quantized values take all of their type.
        return rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, shape).astype(kind)
    return draw_values(rng, shape, kind)
