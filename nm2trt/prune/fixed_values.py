"""Tell tables that somebody computed from weights that were learned, by their values.

A constant that an operator multiplies by need not be a weight: a detector's projection of 16 bins to their mean is
0, 1, ... 15, a spectrogram is a product with cosines, a mel filter bank with triangles, a blur with 1, 2, 1. Zeroing
half of such a table changes the function, and no training put its small values there. No name tells them; values do:

- *one sign*: a matrix of learned weights of at least 32 non-zeros has both signs (filter banks, averages, masks);
- *few magnitudes*: at most 4 different ones among 16 and more non-zeros do not rank weights (one-hot, Haar, Sobel);
- *a recurrence*: along an axis, every row follows w[i + 1] + w[i - 1] = c * w[i], as ramps, cosines and sines do, and
  no noise does (bins, Fourier and cosine transforms, sinusoidal positions);
- *few frequencies*: the energy of every row lies in a few bins of its spectrum (windowed Fourier transforms).

Weights that are all zero rank as learned: pruning leaves them as they are. Integers are left to the first two rules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_ONE_SIGN_COUNT = 32
_FEW_MAGNITUDES = 4
_MAGNITUDES_COUNT = 16
_SHORTEST_ROW = 8
_SHORTEST_SPECTRUM = 64
_ROWS = 64
_PEAK_BINS = 8
_PEAK_SHARE = 0.999
_TOLERANCE = 1e-3
_SAMPLE = 1 << 16


def fixed_reason(values: Array, axis: int) -> str:
    """Why a constant looks computed and not learned; empty where nothing speaks for that.

    Args:
        values: The constant as its operator reads it; at least 2-D.
        axis: Its reduction axis.
    """
    if values.dtype.kind not in "iuf" and not values.dtype.name.startswith("bfloat"):
        return ""
    # Most weights show that they are none of these in their first values.
    sample = values.reshape(-1)[:_SAMPLE].astype(np.float64)
    nonzero = sample[sample != 0]
    if not nonzero.size or not np.isfinite(sample).all():
        return ""
    if _is_ramp(values, axis):
        return "fixed projection: its values are evenly spaced"
    if nonzero.size >= _ONE_SIGN_COUNT and (np.all(nonzero > 0) or np.all(nonzero < 0)) and _one_sign(values):
        return "fixed table: its values have one sign, as filter banks and averages have"
    if nonzero.size >= _MAGNITUDES_COUNT and np.unique(np.abs(nonzero)).size <= _FEW_MAGNITUDES and _few(values):
        return f"fixed table: its values have at most {_FEW_MAGNITUDES} magnitudes, which do not rank them"
    if values.dtype.kind not in "iu" and _is_sinusoids(values):
        return "fixed transform: its rows are cosines and sines, or ramps"
    return ""


def _one_sign(values: Array) -> bool:
    return bool(np.all(values >= 0) or np.all(values <= 0))


def _few(values: Array) -> bool:
    return int(np.count_nonzero(np.unique(np.abs(values.astype(np.float64))))) <= _FEW_MAGNITUDES


def _is_ramp(values: Array, axis: int) -> bool:
    """A single output whose weights are evenly spaced."""
    if values.size != values.shape[axis] or values.size < 3:
        return False
    steps = np.diff(values.reshape(-1).astype(np.float64))
    step = float(np.abs(steps).mean())
    # Half precision rounds the steps of a long ramp.
    slack = max(_TOLERANCE * step, 2.0**-10 * float(np.abs(values.astype(np.float64)).max()))
    return step > 0 and bool(np.abs(steps - steps[0]).max() <= min(slack, 0.25 * step))


def _is_sinusoids(values: Array) -> bool:
    array = values.astype(np.float64)
    for axis in range(array.ndim):
        if array.shape[axis] < _SHORTEST_ROW or array.size // array.shape[axis] < 2:
            continue
        rows = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
        rows = rows[:: max(1, len(rows) // _ROWS)]
        rows = rows[np.abs(rows).max(axis=1) > 0]
        # Two rows tell nearly always, and save the work on the rest.
        for chosen in (rows[1:3], rows):
            if not len(chosen) or not (_follow_recurrence(chosen) or _have_few_frequencies(chosen)):
                break
        else:
            return True
    return False


def _follow_recurrence(rows: Array) -> bool:
    middle, outer = rows[:, 1:-1], rows[:, 2:] + rows[:, :-2]
    energy = (middle * middle).sum(axis=1)
    factor = np.divide((middle * outer).sum(axis=1), energy, out=np.zeros(len(rows)), where=energy > 0)
    rest = np.abs(outer - factor[:, None] * middle).max(axis=1)
    return bool(np.all(rest <= _TOLERANCE * np.abs(rows).max(axis=1)))


def _have_few_frequencies(rows: Array) -> bool:
    if rows.shape[1] < _SHORTEST_SPECTRUM:
        return False
    energy = np.abs(np.fft.rfft(rows, axis=1)) ** 2
    peaks = np.sort(energy, axis=1)[:, -_PEAK_BINS:].sum(axis=1)
    return bool(np.all(peaks >= _PEAK_SHARE * energy.sum(axis=1)))
