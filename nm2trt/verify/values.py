"""A layer's values, read as often as they are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.layers import LayerWeight
from nm2trt.pattern import NMPattern
from nm2trt.verify.counting import GroupCount, count_ranges


class Values:
    """One layer's weight: read in ranges where its file allows that, and held whole only where it does not."""

    def __init__(self, layer: LayerWeight) -> None:
        self.shape = layer.shape
        self._layer = layer
        self._whole: NDArray[Any] | None = None

    def count(self, pattern: NMPattern, axis: int, shape: tuple[int, ...] | None = None) -> GroupCount:
        """As `counting.count_groups`; `shape` is another view of the same values.

        Raises:
            InputError: The values cannot be read.
        """
        return count_ranges(self._layer.load_range or self._held, shape or self.shape, pattern, axis)

    def _held(self, start: int, stop: int) -> NDArray[Any]:
        if self._whole is None:
            self._whole = np.ascontiguousarray(self._layer.weight()).reshape(-1)
        return self._whole[start:stop]
