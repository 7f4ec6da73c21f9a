"""How near two outputs are that are meant to differ, as a quantized network's are: the same rules, other figures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.ort.compare_outputs import FILL_MAGNITUDE


def comparable_values(expected: NDArray[Any], found: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both outputs with 0 where either holds no ordinary number, so that such a place counts in no sum.

    NaN, infinities and fill values are for `compare_outputs` to hold against each other: beside them every other
    value would look small.

    Args:
        expected: The reference's, real and floating point, any shape.
        found: The other side's, of the same shape.
    """
    left, right = expected.astype(np.float64), found.astype(np.float64)
    # A comparison with NaN is false.
    ordinary = (np.abs(left) < FILL_MAGNITUDE) & (np.abs(right) < FILL_MAGNITUDE)
    return np.where(ordinary, left, 0.0), np.where(ordinary, right, 0.0)


def cosines_of_rows(a_RC: NDArray[np.float64], b_RC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine between rows, [rows]: 1 where two rows are equal, also of zeros, and 0 where only one of them is zero."""
    norms = np.linalg.norm(a_RC, axis=1) * np.linalg.norm(b_RC, axis=1)
    dots = (a_RC * b_RC).sum(axis=1)
    cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return np.where(np.all(a_RC == b_RC, axis=1), 1.0, cosines)
