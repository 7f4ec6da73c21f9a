"""What pruning needs to know of a layer's inputs: the sum of their outer products.

The output error of a layer that computes x W^T and whose weights change by D is tr(D G D^T) with G = sum of x^T x over
the calibration samples, so G is all that has to be kept of them (Frantar and Alistarh, "SparseGPT", 2023, section 3).

Legend: G groups of a convolution (1 for a linear layer), R rows (one for each output position of each sample),
C columns (weights of one output).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import InputError

Array = NDArray[Any]
Float64Array = NDArray[np.float64]

_CHUNK_BYTES = 1 << 26


class InputGram:
    """Sums x^T x in float64 over any number of inputs.

    Args:
        columns: Weights of one output: in_features, or kernel positions times input channels of one group.
        groups: Of the convolution.

    Raises:
        ValueError: `columns` or `groups` is not positive.
    """

    def __init__(self, columns: int, groups: int = 1) -> None:
        if columns < 1 or groups < 1:
            raise ValueError(f"{columns} columns in {groups} groups")
        self.gram_GCC: Float64Array = np.zeros((groups, columns, columns))
        self.rows = 0
        """Inputs seen so far, for each group."""

    @property
    def groups(self) -> int:
        """Groups of the convolution."""
        return len(self.gram_GCC)

    @property
    def columns(self) -> int:
        """Weights of one output."""
        return len(self.gram_GCC[0])

    @property
    def column_norms_GC(self) -> Float64Array:  # noqa: N802 -- a value, read as one
        """Euclidean norm of every input column over all rows, as Wanda takes it."""
        norms: Float64Array = np.sqrt(np.diagonal(self.gram_GCC, axis1=1, axis2=2))
        return norms

    @property
    def dead_columns(self) -> int:
        """Input columns that were zero in every row."""
        return int(np.count_nonzero(self.column_norms_GC == 0))

    def add(self, x_GRC: Array, where: object = "") -> None:
        """Add inputs.

        Args:
            x_GRC: Floating point, of any width; read in pieces, so that no float64 copy of all of it is made.
            where: The layer, for error lines.

        Raises:
            ValueError: The shape does not fit.
            InputError: A value is NaN or infinite, or so large that its square is; nothing was added then.
        """
        if x_GRC.ndim != 3 or (x_GRC.shape[0], x_GRC.shape[2]) != (self.groups, self.columns):
            raise ValueError(f"inputs are {x_GRC.shape}, not [{self.groups}, rows, {self.columns}]")
        _check_finite(x_GRC, where)
        largest = float(np.abs(x_GRC).max(initial=0))
        if largest > math.sqrt(np.finfo(np.float64).max / max(self.rows + x_GRC.shape[1], 1)):
            raise InputError(
                f"its inputs are as large as {largest:.3g}, whose squares do not fit float64",
                where=where,
                hint="check the preprocessing of the samples",
            )
        step = max(1, _CHUNK_BYTES // (8 * self.columns))
        for group in range(self.groups):
            for at in range(0, x_GRC.shape[1], step):
                x_RC = x_GRC[group, at : at + step].astype(np.float64)
                self.gram_GCC[group] += x_RC.T @ x_RC
        self.rows += x_GRC.shape[1]

    def error_of(self, change_GOC: Array) -> float:
        """Sum of squared output differences over all rows where the weights change by `change_GOC`."""
        change = change_GOC.astype(np.float64, copy=False)
        return float(sum(np.sum((d_OC @ g_CC) * d_OC) for d_OC, g_CC in zip(change, self.gram_GCC, strict=True)))


def _check_finite(x_GRC: Array, where: object) -> None:
    bad = ~np.isfinite(x_GRC)
    if bad.any():
        index = [int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape)]
        raise InputError(
            f"{int(np.count_nonzero(bad))} of its inputs are NaN or infinite, the first of them {x_GRC[tuple(index)]} "
            f"at group, row, column {index}",
            where=where,
            hint="check the samples and the network: run it on them in float32",
        )
