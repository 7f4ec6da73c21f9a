"""What all checkpoints have in common: stored tensors, and the masks that some tools keep beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.layers.bitmask import BITMASK, BitmaskWeight, bitmask_weights
from nm2trt.layers.config_json import ModelConfig
from nm2trt.layers.naming import Guess, Neighbors, guess, transposed_linears
from nm2trt.layers.stream import LayerWeight
from nm2trt.reasons import Reason

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


def neighbors_of(
    tensors: Sequence[StoredTensor], config: ModelConfig | None = None, claimed: Iterable[str] = ()
) -> Neighbors:
    """Gather what the tensors of a checkpoint, all of its shards together, say about each other.

    Args:
        tensors: Of all files of the checkpoint.
        config: The config.json beside them.
        claimed: Tensors that the file's own metadata call sparse, so that they are weights whatever their names.
    """
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    return Neighbors(
        shapes=shapes,
        known_weights=frozenset(_masks(tensors)) | frozenset(claimed),
        config=config or ModelConfig(),
        transposed_linears=transposed_linears(shapes),
    )


def layers_of(tensors: Sequence[StoredTensor], neighbors: Neighbors | None = None) -> Iterator[LayerWeight]:
    """Turn stored tensors into layers; a weight whose mask lies beside it is given with the mask applied.

    Args:
        tensors: Of one file.
        neighbors: Of the whole checkpoint; `tensors` alone by default.

    Raises:
        InputError: A packed weight contradicts itself.
    """
    if tensors and all(_LONE_MASK.search(tensor.name) for tensor in tensors):
        yield from map(_lone_mask, tensors)
        return
    around = neighbors or neighbors_of(tensors)
    masks = _masks(tensors)
    mask_names = {mask.name for _, mask in masks.values()}
    packed, packed_parts = bitmask_weights(tensors)
    by_name = {tensor.name: tensor for tensor in tensors}
    for tensor in tensors:
        if tensor.name in packed:
            yield _unpacked(packed[tensor.name], around)
            continue
        found = guess(tensor.name, tensor.shape, tensor.dtype, around)
        if tensor.name in mask_names:
            found = Guess("other", None, Reason("mask"))
        elif tensor.name in packed_parts:
            found = Guess("other", None, Reason("companion", tensor.name.rpartition(".")[2]))
        load, load_range = tensor.load, tensor.load_range
        reading: Reason | None = None
        if tensor.name in masks:
            tool, mask = masks[tensor.name]
            masked = _Masked(tensor, mask)
            load = masked
            load_range = masked.load_range if tensor.load_range and mask.load_range else None
            reading = Reason("masked", tool, mask.name)
        elif _PARAMETRIZED.search(tensor.name):
            reading = Reason("before-parametrization")
        yield LayerWeight(
            name=tensor.name,
            op=found.op,
            shape=tensor.shape,
            dtype=tensor.dtype,
            reduction_axis=found.reduction_axis,
            weight=load,
            load_range=load_range,
            groups=found.groups,
            reason=found.reason,
            not_checked=found.unknown,
            zero_point=found.reduction_axis is not None and _has_zero_point(tensor, by_name),
            reading=reading,
        )


def _unpacked(weight: BitmaskWeight, around: Neighbors) -> LayerWeight:
    found = guess(weight.name, weight.shape, weight.compressed.dtype, around)
    return LayerWeight(
        name=weight.name,
        op=found.op,
        shape=weight.shape,
        dtype=weight.compressed.dtype,
        reduction_axis=found.reduction_axis,
        weight=weight.load,
        groups=found.groups,
        reason=found.reason,
        not_checked=found.unknown,
        reading=Reason("unpacked", BITMASK),
        packed=BITMASK,
    )


def _has_zero_point(tensor: StoredTensor, by_name: Mapping[str, StoredTensor]) -> bool:
    """Whether integers have a zero point beside them that is not 0, so that stored zeros are not zeros."""
    if not tensor.dtype.startswith("int"):
        return False
    owner = tensor.name.rpartition(".")[0]
    for name in (f"{tensor.name}_zero_point", f"{owner}.zero_point", f"{tensor.name}.zero_point"):
        if name in by_name:
            values = by_name[name].load()
            return values.dtype.kind not in "iuf" or bool(np.any(values))
    return False


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
        reason=None if packed and tensor.shape[0] else found.reason,
        reading=Reason("mask-bits" if packed else "mask-alone"),
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
