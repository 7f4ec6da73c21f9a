"""Choose what stays of a layer's weights by its inputs, and change what stays to make up for the rest.

`obs` is the optimal brain surgeon in the form of SparseGPT (Frantar and Alistarh 2023, algorithm 1): columns from left
to right; in every group of M the N weights stay whose loss w^2 / [H^-1]_cc would cost most, H being the Hessian of what
is not decided yet; each zeroed weight's error goes onto the columns to its right. With H = R R^T, R upper triangular,
the error of changes d is ||d R||^2, and column c of d R is zero where d_c = -sum_{k<c} d_k R_kc / R_cc: the same update
as SparseGPT's by the factor of H^-1, which is R^-1, but without inverting anything (Chee et al., "QuIP", 2023, show the
equality for rounding).
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
    error_GO = magnitude_error_GO
    if method == "wanda":
        kept = mask(score_columns(w64_GOC, gram, method=method), pattern, -1)
        weights = w_GOC * kept
        error_GO = _row_errors(w64_GOC * kept - w64_GOC, gram)
    elif method == "obs":
        block = max(pattern.m, block // pattern.m * pattern.m)
        weights, kept = np.empty_like(w_GOC), np.empty(w_GOC.shape, np.bool_)
        for group in range(gram.groups):
            upper_CC, share = _upper_factor(gram.gram_GCC[group], damping)
            solved_OC, kept[group] = _solve(w64_GOC[group], upper_CC, pattern, block)
            with np.errstate(over="ignore"):
                weights[group] = solved_OC.astype(w_GOC.dtype)
            used, damped = max(used, share), damped or share > damping or _is_singular(gram.gram_GCC[group], gram.rows)
        error_GO = _row_errors(weights.astype(np.float64) - w64_GOC, gram)
        # Also where a narrow type overflowed.
        worse_GO = ~(error_GO <= magnitude_error_GO)
        weights[worse_GO], kept[worse_GO] = (w_GOC * magnitude_GOC)[worse_GO], magnitude_GOC[worse_GO]
        error_GO = np.where(worse_GO, magnitude_error_GO, error_GO)
        magnitude_rows = int(np.count_nonzero(worse_GO))
    weights = np.where(kept, weights, np.zeros((), w_GOC.dtype)).astype(w_GOC.dtype, copy=False)
    return PrunedColumns(
        weights=weights,
        mask=kept,
        error=float(error_GO.sum()),
        magnitude_error=float(magnitude_error_GO.sum()),
        dense_energy=gram.error_of(w64_GOC),
        damping=used,
        damped=damped,
        dead_columns=gram.dead_columns,
        magnitude_rows=magnitude_rows,
    )


def score_columns(w_GOC: Array, gram: InputGram, *, method: Method, damping: float = 0.01) -> Float64Array:
    """What a method would like to keep, before it changes anything.

    Args:
        w_GOC: Dense weights, floating point.
        gram: Of the layer's inputs.
        method: obs: w^2 / [H^-1]_cc, the squared output error that pruning the weight alone costs at least, H being the
            Hessian of the whole layer; wanda: |w| * ||x_c||; magnitude: |w|.
        damping: As `prune_columns`.

    Returns:
        [G, O, C].
    """
    size_GOC = np.abs(w_GOC.astype(np.float64, copy=False))
    if method == "magnitude":
        return size_GOC
    if method == "wanda":
        return size_GOC * gram.column_norms_GC[:, None]
    scores = np.square(size_GOC)
    for group, gram_CC in enumerate(gram.gram_GCC):
        upper_CC, _ = _upper_factor(gram_CC, damping)
        lower_CC = np.ascontiguousarray(upper_CC.T)
        scores[group] *= (gram_CC.diagonal().mean() or 1.0) / np.square(_invert_lower(lower_CC)).sum(axis=1)
    return scores


def _row_errors(change_GOC: Float64Array, gram: InputGram) -> Float64Array:
    """Return the error of every output: d G d^T, [G, O]."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.stack([np.sum((d @ g) * d, axis=1) for d, g in zip(change_GOC, gram.gram_GCC, strict=True)])


def _upper_factor(gram_CC: Float64Array, damping: float) -> tuple[Float64Array, float]:
    """Return the upper triangular R with R R^T = G / mean diagonal + share * I, and the share that was added."""
    mean = float(np.diagonal(gram_CC).mean())
    if mean == 0:
        return np.eye(len(gram_CC)), damping
    # Scaled, so that no sum overflows whatever the inputs' unit is.
    scaled_CC = gram_CC[::-1, ::-1] / mean
    diagonal = np.diagonal(scaled_CC).copy()
    share = damping
    while True:
        try:
            np.fill_diagonal(scaled_CC, diagonal + share)
            lower_CC: NDArray[Any] = np.linalg.cholesky(scaled_CC)
            pivots = np.square(np.diagonal(lower_CC))
            if float(pivots.min()) > 1e-14 * float(pivots.max()):
                break
        except np.linalg.LinAlgError:
            pass
        share = max(10 * share, _SMALLEST_DAMPING)
    return lower_CC[::-1, ::-1], share


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
    """Run SparseGPT's algorithm over all outputs at once, with columns as rows, so that each is one piece of memory."""
    w_CO = np.ascontiguousarray(w_OC.T)
    # Each column of R over its diagonal: what a change of an earlier column asks of this one.
    pull_CC = upper_CC / np.diagonal(upper_CC)
    sizes_C1 = np.diagonal(upper_CC)[:, None]
    change_CO = np.zeros_like(w_CO)
    kept_CO = np.empty(w_CO.shape, np.bool_)
    for start in range(0, len(w_CO), block):
        end = min(start + block, len(w_CO))
        asked_BO = -pull_CC[:start, start:end].T @ change_CO[:start]
        for first in range(start, end, pattern.m):
            group = slice(first, first + pattern.m)
            asked_MO = asked_BO[first - start : first - start + pattern.m]
            asked_MO -= pull_CC[start:first, group].T @ change_CO[start:first]
            # As if all of the group stayed.
            free_MO = np.linalg.solve(pull_CC[group, group].T, asked_MO)
            kept_CO[group] = mask(np.abs((w_CO[group] + free_MO) * sizes_C1[group]), pattern, 0)
            for place, column in enumerate(range(first, first + pattern.m)):
                change_O = asked_MO[place] - pull_CC[first:column, column] @ change_CO[first:column]
                change_CO[column] = np.where(kept_CO[column], change_O, -w_CO[column])
    kept_OC = np.ascontiguousarray(kept_CO.T)
    return np.where(kept_OC, w_OC + change_CO.T, 0.0), kept_OC
