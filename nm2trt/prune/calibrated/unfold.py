"""A convolution as a product: every output position's inputs in a row, groups of N:M along the input channels.

Columns are ordered (kernel positions, input channels): the channels of one position are neighbors, so M consecutive
columns are M consecutive channels at one kernel position. That is the reduction axis of Sparse Tensor Cores; torch's
`unfold` orders (channels, kernel positions), where M consecutive columns are kernel positions.

Legend: N samples, C input channels, S spatial sizes (one, two or three axes), O output channels, I = C / groups,
k kernel sizes, G groups, R rows (samples times output positions), K columns (kernel positions times I).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_CHUNK_BYTES = 1 << 26


def unfold_convolution(
    x_NCS: Array,
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> Array:
    """Write every output position's inputs as a row.

    Args:
        x_NCS: Inputs with one, two or three spatial axes.
        kernel: Its sizes.
        strides: One for each spatial axis; 1 where left out.
        pads: Zeros before every spatial axis, then zeros behind every one, as ONNX writes them; 0 where left out.
        dilations: One for each spatial axis; 1 where left out.
        groups: Of the convolution.

    Returns:
        [G, R, K] of the inputs' dtype; rows are ordered (samples, output positions). `x @ weight_to_columns(w)^T` of
        each group is the convolution's output.

    Raises:
        ValueError: Shapes do not fit each other, or the kernel is larger than the padded input.
    """
    rank = len(kernel)
    if x_NCS.ndim != rank + 2 or not 1 <= rank <= 3 or min(kernel) < 1:
        raise ValueError(f"input is {x_NCS.shape}, kernel {list(kernel)}")
    strides_S, dilations_S = _ones(strides, rank), _ones(dilations, rank)
    pads_S = list(pads) if pads is not None else [0] * 2 * rank
    if len(pads_S) != 2 * rank or min(pads_S) < 0:
        raise ValueError(f"pads {pads_S} for {rank} spatial axes")
    samples, channels = x_NCS.shape[:2]
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels in {groups} groups")
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations_S, strict=True)]
    sizes = [x_NCS.shape[2 + axis] + pads_S[axis] + pads_S[rank + axis] for axis in range(rank)]
    if any(size < extent for size, extent in zip(sizes, extents, strict=True)):
        raise ValueError(f"kernel reaches over {extents}, the padded input is {sizes}")
    x_NCS = np.pad(x_NCS, [(0, 0), (0, 0), *((pads_S[axis], pads_S[rank + axis]) for axis in range(rank))])
    x_NSGI = np.moveaxis(x_NCS, 1, -1).reshape(samples, *sizes, groups, channels // groups)
    places = [(size - extent) // stride + 1 for size, extent, stride in zip(sizes, extents, strides_S, strict=True)]
    shape = (groups, samples, *places, math.prod(kernel), channels // groups)
    x_GNSkI = np.empty(shape, x_NCS.dtype)
    for number, position in enumerate(np.ndindex(*kernel)):
        window = tuple(
            slice(at * dilation, at * dilation + (count - 1) * stride + 1, stride)
            for at, dilation, count, stride in zip(position, dilations_S, places, strides_S, strict=True)
        )
        x_GNSkI[..., number, :] = np.moveaxis(x_NSGI[(slice(None), *window)], -2, 0)
    return x_GNSkI.reshape(groups, samples * math.prod(places), -1)


def iterate_unfolded(
    x_NCS: Array,
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> Iterator[Array]:
    """Give the rows of `unfold_convolution` for a few samples at a time; about 64 MiB, but at least one sample."""
    grown = math.prod(kernel) * x_NCS.itemsize * max(1, math.prod(x_NCS.shape[1:]))
    step = max(1, _CHUNK_BYTES * math.prod(strides or (1,)) // grown)
    for at in range(0, len(x_NCS), step):
        yield unfold_convolution(
            x_NCS[at : at + step], kernel, strides=strides, pads=pads, dilations=dilations, groups=groups
        )


def weight_to_columns(w_OIk: Array, groups: int = 1) -> Array:
    """Bring a convolution's weight, or a linear one [O, I], into the order of `unfold_convolution`.

    Returns:
        [G, O / G, K].

    Raises:
        ValueError: The output channels are no multiple of `groups`.
    """
    if groups < 1 or len(w_OIk) % groups:
        raise ValueError(f"{len(w_OIk)} output channels in {groups} groups")
    moved_OkI = np.moveaxis(w_OIk, 1, -1)
    return np.ascontiguousarray(moved_OkI).reshape(groups, len(w_OIk) // groups, -1)


def columns_to_weight(w_GOK: Array, shape: Sequence[int]) -> Array:
    """Undo `weight_to_columns`; `shape` is the weight's, [O, I, k...]."""
    outputs, inputs, *kernel = shape
    return np.ascontiguousarray(np.moveaxis(w_GOK.reshape(outputs, *kernel, inputs), -1, 1))


def _ones(values: Sequence[int] | None, rank: int) -> list[int]:
    found = list(values) if values is not None else [1] * rank
    if len(found) != rank or min(found) < 1:
        raise ValueError(f"{found} for {rank} spatial axes")
    return found
