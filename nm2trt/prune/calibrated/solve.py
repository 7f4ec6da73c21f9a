"""Choose what stays of a layer's weights by its inputs, and change what stays to make up for the rest.

`obs` is the optimal brain surgeon in the form of SparseGPT (Frantar and Alistarh 2023, algorithm 1): columns from left
to right; in every group of M the N weights stay whose loss w^2 / [H^-1]_cc would cost most, H being the Hessian of what
is not decided yet; each zeroed weight's error goes onto the columns to its right by the Cholesky factor of H^-1.
`wanda` (Sun et al. 2024) keeps the N largest |w| * ||x_c|| and changes nothing; `magnitude` the N largest |w|.

Legend: G groups of a convolution, O outputs of one group, C columns as `weight_to_columns` orders them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.pattern import NMPattern, mask
from nm2trt.prune.calibrated.gram import Float64Array, InputGram

Array = NDArray[Any]
BoolArray = NDArray[np.bool_]
Method = Literal["obs", "wanda", "magnitude"]

_SMALLEST_DAMPING = 1e-8
"""Where no damping was asked for and the Hessian is singular."""
_SINGULAR = 1e-10
_SMALL_TRIANGLE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedColumns:
    """A pruned layer. Errors are sums of squared output differences over all calibration rows."""

    weights: Array
    """[G, O, C] of the given dtype; zero wherever `mask` is False."""
    mask: BoolArray
    """[G, O, C]; True for exactly N of every M."""
    error: float
    """Of `weights` as they are stored."""
    magnitude_error: float
    """Of the N largest magnitudes of every group, unchanged."""
    dense_energy: float
    """Sum of squared outputs of the dense layer without its bias."""
    damping: float
    """Share of the mean diagonal that was added to the Hessian's; 0 for `wanda` and `magnitude`."""
    damped: bool
    """The Hessian is singular and only its damping made it usable: few samples, or inputs that depend on each other."""
    dead_columns: int
    """Input columns that are zero in every row; nothing is known of their weights."""
    magnitude_rows: int
    """Outputs that magnitude alone serves better on these inputs, and which therefore were pruned by it."""


def prune_columns(
    w_GOC: Array,
    gram: InputGram,
    pattern: NMPattern,
    *,
    method: Method,
    damping: float = 0.01,
    block: int = 128,
) -> PrunedColumns:
    """Prune one layer to N:M along its columns.

    `obs` never has a larger error on these inputs than magnitude: an output that has is pruned by magnitude. `wanda`
    has no such guarantee. The same input gives the same result on one machine.

    Args:
        w_GOC: Dense weights, floating point.
        gram: Of the layer's inputs.
        pattern: Its M divides the input channels of a group (and therefore C).
        method: See the module.
        damping: Share of the Hessian's mean diagonal to add to its diagonal; raised where that does not suffice.
        block: Columns that are updated at once; rounded to a multiple of M. The result does not depend on it but
            for rounding.

    Raises:
        ValueError: Shapes do not fit each other, or M does not divide C.
        InputError: There are no inputs, or a weight is NaN or infinite.
    """
    if w_GOC.ndim != 3 or (w_GOC.shape[0], w_GOC.shape[2]) != (gram.groups, gram.columns) or gram.columns % pattern.m:
        raise ValueError(f"weights {w_GOC.shape} by {pattern}, inputs of {gram.groups} x {gram.columns} columns")
    if damping < 0:
        raise ValueError(f"damping {damping}")
    if not gram.rows:
        raise InputError("no sample reached it", hint="give samples that run through it, or leave it dense")
    w64_GOC = w_GOC.astype(np.float64)
    if not np.isfinite(w64_GOC).all():
        raise InputError("its weights hold NaN or infinity", hint="leave it dense with --exclude, or repair the file")
    magnitude_GOC = np.asarray(mask(np.abs(w64_GOC), pattern, -1))
    magnitude_error_GO = _row_errors(w64_GOC * magnitude_GOC - w64_GOC, gram)
    weights, kept, used, damped, magnitude_rows = w_GOC * magnitude_GOC, magnitude_GOC, 0.0, False, 0
    if method == "wanda":
        kept = mask(np.abs(w64_GOC) * gram.column_norms_GC[:, None], pattern, -1)
        weights = w_GOC * kept
    elif method == "obs":
        block = max(pattern.m, block // pattern.m * pattern.m)
        weights, kept = np.empty_like(w_GOC), np.empty(w_GOC.shape, np.bool_)
        for group in range(gram.groups):
            upper_CC, share = _inverse_factor(gram.gram_GCC[group], damping)
            solved_OC, kept[group] = _solve(w64_GOC[group], upper_CC, pattern, block)
            with np.errstate(over="ignore"):
                weights[group] = solved_OC.astype(w_GOC.dtype)
            used, damped = max(used, share), damped or share > damping or _is_singular(gram.gram_GCC[group], gram.rows)
        error_GO = _row_errors(weights.astype(np.float64) - w64_GOC, gram)
        # Also where a narrow type overflowed.
        worse_GO = ~(error_GO <= magnitude_error_GO)
        weights[worse_GO], kept[worse_GO] = (w_GOC * magnitude_GOC)[worse_GO], magnitude_GOC[worse_GO]
        magnitude_rows = int(np.count_nonzero(worse_GO))
    weights = np.where(kept, weights, np.zeros((), w_GOC.dtype)).astype(w_GOC.dtype, copy=False)
    return PrunedColumns(
        weights=weights,
        mask=kept,
        error=float(_row_errors(weights.astype(np.float64) - w64_GOC, gram).sum()),
        magnitude_error=float(magnitude_error_GO.sum()),
        dense_energy=gram.error_of(w64_GOC),
        damping=used,
        damped=damped,
        dead_columns=gram.dead_columns,
        magnitude_rows=magnitude_rows,
    )


def _row_errors(change_GOC: Float64Array, gram: InputGram) -> Float64Array:
    """Return the error of every output: d G d^T, [G, O]."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.stack([np.sum((d @ g) * d, axis=1) for d, g in zip(change_GOC, gram.gram_GCC, strict=True)])


def _inverse_factor(gram_CC: Float64Array, damping: float) -> tuple[Float64Array, float]:
    """Return the upper triangular U with U^T U = (G + added diagonal)^-1, and the share that was added.

    U^T U of what is right of any column is the inverse Hessian of those columns alone, which is why one factor serves
    every step. H = R R^T with an upper R gives U = R^-1, without ever inverting H itself.
    """
    diagonal = np.diagonal(gram_CC)
    mean = float(diagonal.mean())
    if mean == 0:
        return np.eye(len(gram_CC)), damping
    # Scaled, so that no sum overflows whatever the inputs' unit is.
    scaled_CC = gram_CC[::-1, ::-1] / mean
    share = damping
    while True:
        try:
            lower_CC: NDArray[Any] = np.linalg.cholesky(scaled_CC + share * np.eye(len(scaled_CC)))
            pivots = np.square(np.diagonal(lower_CC))
            if float(pivots.min()) > 1e-14 * float(pivots.max()):
                break
        except np.linalg.LinAlgError:
            pass
        share = max(10 * share, _SMALLEST_DAMPING)
    return np.ascontiguousarray(_invert_lower(lower_CC)[::-1, ::-1]) / np.sqrt(mean), share


def _is_singular(gram_CC: Float64Array, rows: int) -> bool:
    """Tell whether some combination of inputs is zero in every row, but for a 1e-10th of the mean energy."""
    diagonal = np.diagonal(gram_CC)
    if rows < len(gram_CC) or not diagonal.all():
        return True
    try:
        lower_CC = np.linalg.cholesky(gram_CC / diagonal.mean() + _SINGULAR * np.eye(len(gram_CC)))
    except np.linalg.LinAlgError:
        return True
    # A combination with equal shares of all columns leaves C times its eigenvalue at the last pivot.
    return bool(np.square(np.diagonal(lower_CC)).min() <= 2 * _SINGULAR * len(gram_CC))


def _invert_lower(lower: NDArray[Any]) -> Float64Array:
    """Invert a lower triangular matrix by halves, in a third of the work of a general inverse."""
    size = len(lower)
    if size <= _SMALL_TRIANGLE:
        return np.tril(np.linalg.inv(lower))
    half = size // 2
    result = np.zeros_like(lower)
    result[:half, :half] = _invert_lower(lower[:half, :half])
    result[half:, half:] = _invert_lower(lower[half:, half:])
    result[half:, :half] = -result[half:, half:] @ (lower[half:, :half] @ result[:half, :half])
    return result


def _solve(
    w_OC: Float64Array, upper_CC: Float64Array, pattern: NMPattern, block: int
) -> tuple[Float64Array, BoolArray]:
    """Run SparseGPT's algorithm over all outputs at once."""
    w_OC = w_OC.copy()
    kept_OC = np.ones(w_OC.shape, np.bool_)
    columns = w_OC.shape[1]
    for start in range(0, columns, block):
        end = min(start + block, columns)
        errors_OB = np.zeros((len(w_OC), end - start))
        for column in range(start, end):
            if column % pattern.m == 0:
                group = slice(column, column + pattern.m)
                loss = w_OC[:, group] / np.diagonal(upper_CC)[group]
                kept_OC[:, group] = mask(np.abs(loss), pattern, -1)
            error_O = np.where(kept_OC[:, column], 0.0, w_OC[:, column]) / upper_CC[column, column]
            w_OC[:, column:end] -= np.outer(error_O, upper_CC[column, column:end])
            errors_OB[:, column - start] = error_O
        w_OC[:, end:] -= errors_OB @ upper_CC[start:end, end:]
    return np.where(kept_OC, w_OC, 0.0), kept_OC
