"""Files opened for writing into: the weights of a checkpoint or graph with the bytes behind them.

Every format is patched in place, so that what is not pruned keeps its bytes: the caller gives a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.layers import LayerWeight, open_source
from nm2trt.layers.bitmask import UNPACK_HINT
from nm2trt.layers.naming import Neighbors
from nm2trt.prune.magnitude import Layout, moved

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeight:
    """One way in which one stored tensor is used."""

    layer: LayerWeight
    key: object
    """Equal for weights that share their bytes."""
    read: Callable[[], Array]
    """Values as stored, without masks."""
    write: Callable[[Array], None]
    """Replace the stored values; same shape and type."""
    layout: Layout = ()
    masked: bool = False
    """`layer.weight()` applies a mask that lies beside the tensor."""
    dense_unless_named: str = ""
    """Why this weight stays dense unless the user names it; empty where nothing speaks for that."""
    refused: str = ""
    """Why this weight cannot be written; empty where it can."""

    def values(self, stored: Array) -> Array:
        """The stored values in the operator's shape, with masks applied."""
        return self.layer.weight() if self.masked else moved(stored, self.layout)


class StoredFile(Protocol):
    """A file whose weights can be written. One class a format, so that pruning is written once."""

    @property
    def weights(self) -> Sequence[StoredWeight]:
        """Every use of every tensor; for prunable and other tensors alike."""

    def write_others(self, values: Mapping[str, Array]) -> None:
        """Replace constants that are no weights of layers, by name; same shapes. Not for .pt files."""

    def save(self) -> None:
        """Finish the file after the last write."""


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What all files of a checkpoint say together: one shard alone may hold a weight without its bias."""

    neighbors: Neighbors
    classifiers: frozenset[str]


def checkpoint_facts(model: Path) -> CheckpointFacts | None:
    """Read the headers of a checkpoint; None for ONNX.

    Args:
        model: As `nm2trt.layers.open_source` takes it.

    Raises:
        InputError: It cannot be read, or its weights are packed.
    """
    from nm2trt.layers.checkpoint import layers_of, neighbors_of
    from nm2trt.layers.config_json import read_config
    from nm2trt.layers.sources import checkpoint_tensors
    from nm2trt.prune.naming import classifiers_of

    tensors = checkpoint_tensors(model)
    if not tensors:
        return None
    claims = open_source(model).patterns or {}
    neighbors = neighbors_of(tensors, read_config(model), claims)
    layers = list(layers_of(tensors, neighbors))
    packed = next((layer for layer in layers if layer.packed), None)
    if packed is not None:
        raise InputError(
            f"weight {packed.name!r} is packed ({packed.packed}): it holds only what an earlier pruning kept",
            where=model,
            hint=UNPACK_HINT,
        )
    return CheckpointFacts(neighbors, classifiers_of(layers))


def as_integers(array: Array) -> Array:
    """Reinterpret as integers of the same size, which every library can move without touching bits."""
    return np.ascontiguousarray(array).view(f"i{array.dtype.itemsize}")
