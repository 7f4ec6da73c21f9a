"""N:M patterns: parse, mask, count, judge. Pure numpy.

N is the number of weights *kept* in every group of M consecutive weights along the reduction axis, as in
"Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch" (Zhou et al., ICLR 2021).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import ConfigError

Array = NDArray[Any]

_SYNTAX = re.compile(r"([0-9]+):([0-9]+)")
_LARGEST_M = 1024


@dataclass(frozen=True, slots=True)
class NMPattern:
    """At most `n` non-zeros in every aligned group of `m` along the reduction axis."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m <= _LARGEST_M:
            raise ConfigError(
                f"pattern {self.n}:{self.m} keeps {self.n} of every {self.m} weights",
                hint=f"use N:M with 1 <= N < M <= {_LARGEST_M}, such as 2:4",
            )

    @classmethod
    def parse(cls, text: str) -> NMPattern:
        """Read `"2:4"`.

        Raises:
            ConfigError: The text is no N:M pattern, or N is not between 1 and M - 1.
        """
        match = _SYNTAX.fullmatch(text.strip())
        if match is None:
            raise ConfigError(f"{text!r} is no N:M pattern", hint="write it as N:M, such as 2:4")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """Share of weights kept, between 0 and 1."""
        return self.n / self.m

    @property
    def tensorrt_legal(self) -> bool:
        """Whether every weight of this pattern is legal for Sparse Tensor Cores.

        TensorRT takes aligned groups of 4 with at most 2 non-zeros (TensorRT developer guide, structured
        sparsity). 2:4, 1:4, 2:8 and 1:16 always satisfy that; 4:8 does not.
        """
        # Four neighbors touch at most two groups, so one weight a group is legal whatever M is.
        return self.n == 1 or (self.n == 2 and self.m % 4 == 0)


TENSORRT_PATTERN = NMPattern(2, 4)


def grouped(weight: Array, pattern: NMPattern, axis: int) -> Array:
    """View `weight` with its groups along the last axis: shape [..., axis_size / M, M].

    Raises:
        ValueError: The axis is not a multiple of M.
    """
    if weight.shape[axis] % pattern.m:
        raise ValueError(f"axis {axis} of shape {weight.shape} is no multiple of {pattern.m}")
    last = np.moveaxis(weight, axis, -1)
    return last.reshape(*last.shape[:-1], last.shape[-1] // pattern.m, pattern.m)


def mask(weight: Array, pattern: NMPattern, axis: int) -> NDArray[np.bool_]:
    """Keep the N largest magnitudes of every group; of equal ones the lowest index wins.

    Args:
        weight: Any shape, floating point, without NaN.
        pattern: The pattern to impose.
        axis: The reduction axis; its size is a multiple of M.

    Returns:
        Boolean array of `weight`'s shape, True where the weight is kept; exactly N per group.

    Raises:
        ValueError: The axis is not a multiple of M.
    """
    groups = grouped(np.abs(weight), pattern, axis)
    order = np.argsort(-groups, axis=-1, kind="stable")
    kept = np.zeros(groups.shape, dtype=np.bool_)
    np.put_along_axis(kept, order[..., : pattern.n], values=True, axis=-1)
    moved = np.moveaxis(weight, axis, -1).shape
    return np.ascontiguousarray(np.moveaxis(kept.reshape(moved), -1, axis))


def nonzeros_per_group(weight: Array, pattern: NMPattern, axis: int) -> NDArray[np.intp]:
    """Count non-zeros in every group; -0.0 is zero, NaN and infinity are non-zeros.

    Returns:
        Integer array [..., axis_size / M], the reduction axis moved last.

    Raises:
        ValueError: The axis is not a multiple of M.
    """
    counts: NDArray[np.intp] = np.count_nonzero(grouped(weight, pattern, axis), axis=-1)
    return counts


def conforms(weight: Array, pattern: NMPattern, axis: int) -> bool:
    """Tell whether every group holds at most N non-zeros; an axis that M does not divide never conforms."""
    if weight.shape[axis] % pattern.m:
        return False
    return bool((nonzeros_per_group(weight, pattern, axis) <= pattern.n).all())
