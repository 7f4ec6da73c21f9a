"""What is remembered of an activation: a histogram of magnitudes that never grows, whatever the number of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 4096
"""The largest magnitude lies in the upper half of them, so that at least 2,048 are in use, as in TensorRT."""


@dataclass(slots=True)
class TensorStatistics:
    """Extremes and histogram of one tensor over all batches seen so far.

    When a magnitude beyond the last bin arrives, the range doubles and neighboring bins are added up, so that counts
    stay exact and memory stays at 32 KiB.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    span: float = 0.0
    """Magnitude at the end of the last bin; 0 as long as only zeros were seen."""
    smallest: float = math.inf
    largest: float = -math.inf
    values: int = 0

    @property
    def magnitude(self) -> float:
        """Largest magnitude seen."""
        return max(abs(self.smallest), abs(self.largest)) if self.values else 0.0

    @property
    def constant(self) -> bool:
        """Whether all values were equal."""
        return self.values > 0 and self.smallest == self.largest

    def add(self, array: NDArray[Any]) -> bool:
        """Take a batch into account.

        Returns:
            False when it holds NaN or infinity, and was not counted.
        """
        if array.size == 0:
            return True
        flat = array.reshape(-1).astype(np.float32, copy=False)
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            return False
        self.smallest, self.largest = min(self.smallest, low), max(self.largest, high)
        self.values += flat.size
        self._cover(max(abs(low), abs(high)))
        self._count(flat)
        return True

    def _cover(self, magnitude: float) -> None:
        if self.span == 0.0:
            # Zeros seen so far stay in bin 0.
            self.span = magnitude
            return
        while magnitude > self.span:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
            self.span *= 2

    def _count(self, flat: NDArray[np.float32]) -> None:
        if self.span == 0.0:
            self.counts[0] += flat.size
            return
        # A pass over a large tensor in pieces stays in the cache.
        factor = np.float64(BINS) / self.span
        for at in range(0, flat.size, 1 << 18):
            piece = np.abs(flat[at : at + (1 << 18)])
            if factor < np.finfo(np.float32).max:
                piece *= np.float32(factor)
            else:
                piece = (piece.astype(np.float64) * factor).astype(np.float32)
            index = piece.astype(np.int32)
            np.minimum(index, BINS - 1, out=index)
            self.counts += np.bincount(index, minlength=BINS)
