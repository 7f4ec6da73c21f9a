"""Write weights into a .safetensors file: its header and all other tensors keep their bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from nm2trt.layers.checkpoint import StoredTensor, layers_of
from nm2trt.layers.safetensors_reader import safetensors_tensors
from nm2trt.prune.naming import classifier_reason
from nm2trt.prune.writers.stored import Array, CheckpointFacts, StoredWeight


class SafetensorsFile:
    """Open a copy of a .safetensors file; errors as `nm2trt.layers.open_source`."""

    def __init__(self, path: Path, facts: CheckpointFacts) -> None:
        self._path = path
        self._tensors = tensors = {tensor.name: tensor for tensor in safetensors_tensors(path)}
        starts = _starts(path)
        layers = list(layers_of(list(tensors.values()), facts.neighbors))
        self.weights = [
            StoredWeight(
                layer=layer,
                key=layer.name,
                read=tensors[layer.name].load,
                write=partial(_write, path, starts[layer.name], tensors[layer.name]),
                masked=True,
                dense_unless_named=classifier_reason(layer, facts.classifiers),
            )
            for layer in layers
        ]

    def write_others(self, values: Mapping[str, Array]) -> None:
        """Replace tensors by name, in the type that the file has; names that it does not hold are left out."""
        starts = _starts(self._path)
        for name in values.keys() & self._tensors.keys():
            tensor = self._tensors[name]
            _write(self._path, starts[name], tensor, values[name].astype(tensor.load().dtype))

    def save(self) -> None:
        """Nothing is left to do: every write went to the file."""


def _starts(path: Path) -> dict[str, int]:
    """Byte offset of every tensor; the reader has checked the header before."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _write(path: Path, start: int, tensor: StoredTensor, array: Array) -> None:
    assert array.shape == tensor.shape
    assert array.dtype.name == tensor.dtype
    with path.open("r+b") as file:
        file.seek(start)
        file.write(np.ascontiguousarray(array).tobytes())
