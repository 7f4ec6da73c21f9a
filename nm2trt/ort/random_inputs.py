"""Random values that a network is fed with, drawn alike wherever one is tried, timed or compared without samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nm2trt.ort.compare_outputs import is_floating

if TYPE_CHECKING:
    import torch

NUMPY_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}
"""ONNX Runtime's name of a type -> numpy's, of the types that values are drawn for."""
_FIRST_PADDED = 0.75


def draw_values(
    rng: np.random.Generator, shape: Sequence[int], dtype: DTypeLike, *, low: int = 0, below: int = 2
) -> NDArray[Any]:
    """Draw normal noise of variance 1 in floating point; integers and booleans from a range.

    Args:
        rng: Moves on.
        shape: Of the array; () gives an array of rank 0.
        dtype: Also a narrow type of ml_dtypes.
        low: The least integer.
        below: The first integer that is not drawn; 0 and 1 alone are tokens, masks, flags and lengths alike.
    """
    kind = np.dtype(dtype)
    # Of rank 0 numpy draws scalars, which ONNX Runtime does not take.
    if is_floating(kind):
        return np.asarray(rng.standard_normal(shape)).astype(kind)
    return np.asarray(rng.integers(low, below, shape)).astype(kind)


def draw_tensor(
    generator: torch.Generator, shape: Sequence[int], dtype: torch.dtype, *, below: int = 2
) -> torch.Tensor:
    """Draw a tensor on the generator's device: normal noise in floating point, integers from 0 to before `below`."""
    import torch

    if dtype.is_floating_point:
        return torch.randn(tuple(shape), generator=generator, device=generator.device).to(dtype)
    return torch.randint(0, below, tuple(shape), generator=generator, device=generator.device).to(dtype)


def is_mask(name: str) -> bool:
    """Whether an input's name says that it is a mask of ones and padding."""
    return "mask" in name.lower()


def make_mask(shape: Sequence[int], dtype: DTypeLike, *, whole: int = 1) -> NDArray[Any]:
    """Ones; behind the first `whole` samples every other one is padded with zeros in its last quarter.

    Args:
        shape: [samples, ..., length].
        dtype: Of the array.
        whole: Samples at the beginning that no padding may hide a token of.
    """
    mask = np.ones(shape, dtype=dtype)
    mask[whole::2, ..., math.ceil(shape[-1] * _FIRST_PADDED) :] = 0
    return mask
