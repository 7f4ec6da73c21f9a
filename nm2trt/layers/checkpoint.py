"""What all checkpoints have in common: stored tensors, and the masks that some tools keep beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.layers.naming import Guess, guess
from nm2trt.layers.stream import LayerWeight

_Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file, not loaded yet."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], _Array]
    load_range: Callable[[int, int], _Array] | None = None
    """As in `LayerWeight`."""


_MASKS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("apex ASP", re.compile(r"^(?P<head>.*?)__(?P<tail>\w+)_mma_mask$"), r"\g<head>\g<tail>"),
    ("Model Optimizer", re.compile(r"^(?P<head>(?:.*\.)?)_(?P<tail>\w+)_mask$"), r"\g<head>\g<tail>"),
    ("torch.nn.utils.prune", re.compile(r"^(?P<head>(?:.*\.)?)(?P<tail>\w+)_mask$"), r"\g<head>\g<tail>_orig"),
    (
        "a torch parametrization",
        re.compile(r"^(?P<head>(?:.*\.)?parametrizations\.\w+)\.\d+\.mask$"),
        r"\g<head>.original",
    ),
)
"""Tool, name of its mask buffer, name of the weight that the mask is for."""


_LONE_MASK = re.compile(r"(^|\.)mask(\.|$)")
"""MaskLLM: the weight's name with `.mask` in it or behind it."""

_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.\w+\.original$")
"""torch.ao.pruning, for one, keeps its masks out of the state dict."""


def layers_of(tensors: Sequence[StoredTensor]) -> Iterator[LayerWeight]:
    """Turn stored tensors into layers; a weight whose mask lies beside it is given with the mask applied."""
    if tensors and all(_LONE_MASK.search(tensor.name) for tensor in tensors):
        yield from map(_lone_mask, tensors)
        return
    masks = _masks(tensors)
    mask_names = {mask.name for _, mask in masks.values()}
    for tensor in tensors:
        found = guess(tensor.name, tensor.shape, tensor.dtype)
        if tensor.name in mask_names:
            found = Guess("other", None, "mask: applied to the weight beside it")
        load, load_range, note = tensor.load, tensor.load_range, ""
        if tensor.name in masks:
            tool, mask = masks[tensor.name]
            masked = _Masked(tensor, mask)
            load = masked
            load_range = masked.load_range if tensor.load_range and mask.load_range else None
            note = f"judged with the mask that {tool} keeps in {mask.name}; the stored weights alone may be dense"
        elif _PARAMETRIZED.search(tensor.name):
            note = (
                "stored as it is before a torch parametrization, whose mask is not in the file; save it after "
                "torch.nn.utils.parametrize.remove_parametrizations or the sparsifier's squash_mask"
            )
        yield LayerWeight(
            name=tensor.name,
            op=found.op,
            shape=tensor.shape,
            dtype=tensor.dtype,
            reduction_axis=found.reduction_axis,
            weight=load,
            load_range=load_range,
            why_not=found.why_not,
            note=note,
        )


def _lone_mask(tensor: StoredTensor) -> LayerWeight:
    """A mask whose weight is in another file: MaskLLM's masks, packed into bits (.npz) or not (.pt).

    Its tools pack the bits of the row-major [out, in] matrix, so a byte holds two groups of 4; the shape is lost.
    """
    packed = tensor.dtype == "uint8" and len(tensor.shape) == 1
    found = guess("weight", tensor.shape, "float32")
    shape = (tensor.shape[0], 8) if packed else tensor.shape
    return LayerWeight(
        name=tensor.name,
        op="linear" if packed else found.op,
        shape=shape,
        dtype=tensor.dtype,
        reduction_axis=1 if packed and tensor.shape[0] else found.reduction_axis,
        weight=(lambda: np.unpackbits(tensor.load()).reshape(shape)) if packed else tensor.load,
        why_not="" if packed and tensor.shape[0] else found.why_not,
        note="a mask without its weight" + (", unpacked from bits, in rows of 8" if packed else ""),
        graph_dtype="mask",
    )


def _masks(tensors: Sequence[StoredTensor]) -> dict[str, tuple[str, StoredTensor]]:
    """Weight name -> (tool, mask)."""
    by_name = {tensor.name: tensor for tensor in tensors}
    found: dict[str, tuple[str, StoredTensor]] = {}
    for tensor in tensors:
        for tool, pattern, weight_name in _MASKS:
            match = pattern.match(tensor.name)
            weight = by_name.get(match.expand(weight_name)) if match else None
            if weight is not None and weight is not tensor and weight.shape == tensor.shape:
                found.setdefault(weight.name, (tool, tensor))
                break
    return found


@dataclass(frozen=True, slots=True)
class _Masked:
    weight: StoredTensor
    mask: StoredTensor

    def __call__(self) -> _Array:
        return _applied(self.mask.load(), self.weight.load())

    def load_range(self, start: int, stop: int) -> _Array:
        assert self.mask.load_range is not None
        assert self.weight.load_range is not None
        return _applied(self.mask.load_range(start, stop), self.weight.load_range(start, stop))


def _applied(mask: _Array, array: _Array) -> _Array:
    # Masks are bool, or 0 and 1 in any type; a product would turn NaN * 0 into NaN.
    return np.where(np.asarray(mask).astype(np.bool_), array, np.zeros((), array.dtype))
