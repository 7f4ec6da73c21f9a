"""Weights that compressed-tensors stores as their non-zeros and one bit a weight.

Formats `sparse-24-bitmask` and `sparse-bitmask` of the compressed-tensors library: beside `X.compressed`, the non-zeros
in row-major order, lie `X.bitmask` [rows, ceil(columns / 8)], lowest bit first, and `X.shape`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import InputError

if TYPE_CHECKING:
    from nm2trt.layers.checkpoint import StoredTensor

BITMASK = "compressed-tensors bitmask"
UNPACK_HINT = (
    "decompress it: transformers' AutoModelForCausalLM.from_pretrained(PATH, "
    "quantization_config=CompressedTensorsConfig(run_compressed=False)), then save_pretrained"
)
_PARTS = ("compressed", "bitmask", "shape")
_OTHER_PARTS = ("row_offsets",)


@dataclass(frozen=True, slots=True)
class BitmaskWeight:
    """One packed weight."""

    name: str
    compressed: StoredTensor
    bitmask: StoredTensor
    shape: tuple[int, ...]

    def load(self) -> NDArray[Any]:
        """Unpack to [rows, columns...].

        Raises:
            InputError: There are not as many values as bits that are set.
        """
        values, bits = self.compressed.load().reshape(-1), self.bitmask.load()
        columns = self.shape[-1]
        rows = math.prod(self.shape[:-1])
        places = np.unpackbits(bits.astype(np.uint8).reshape(rows, -1), axis=1, bitorder="little")[:, :columns]
        places = places.astype(np.bool_)
        if int(np.count_nonzero(places)) != values.size:
            raise InputError(
                f"{int(np.count_nonzero(places))} bits are set for {values.size} values",
                where=f"tensor {self.name!r}",
                hint="download the file again",
            )
        dense = np.zeros(places.shape, values.dtype)
        dense[places] = values
        return dense.reshape(self.shape)


def bitmask_weights(tensors: Sequence[StoredTensor]) -> tuple[dict[str, BitmaskWeight], set[str]]:
    """Find packed weights.

    Returns:
        Name of `X.compressed` -> the weight X; and the names of the parts beside it.

    Raises:
        InputError: A shape does not fit its bits.
    """
    by_name: Mapping[str, StoredTensor] = {tensor.name: tensor for tensor in tensors}
    found: dict[str, BitmaskWeight] = {}
    parts: set[str] = set()
    for tensor in tensors:
        name, _, last = tensor.name.rpartition(".")
        if last != "compressed" or not all(f"{name}.{part}" in by_name for part in _PARTS):
            continue
        bitmask, stored_shape = by_name[f"{name}.bitmask"], by_name[f"{name}.shape"]
        shape = tuple(int(size) for size in stored_shape.load().reshape(-1)) if _is_small(stored_shape) else ()
        rows = math.prod(shape[:-1])
        fits = len(shape) >= 2 and min(shape) > 0 and math.prod(bitmask.shape) == rows * math.ceil(shape[-1] / 8)
        if not fits or bitmask.dtype != "uint8":
            raise InputError(
                f"shape {list(shape)} does not fit its bit mask {list(bitmask.shape)}",
                where=f"tensor {name!r}",
                hint="download the file again",
            )
        found[tensor.name] = BitmaskWeight(name, tensor, bitmask, shape)
        parts |= {f"{name}.{part}" for part in (*_PARTS[1:], *_OTHER_PARTS)}
    return found, parts


def _is_small(tensor: StoredTensor) -> bool:
    return math.prod(tensor.shape) <= 8 and tensor.dtype.startswith(("int", "uint"))
