"""Folders as Hugging Face and others write them: one weight file, or an index of shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from nm2trt.errors import InputError
from nm2trt.layers.checkpoint import StoredTensor, layers_of, neighbors_of
from nm2trt.layers.config_json import read_config
from nm2trt.layers.stream import LayerSource
from nm2trt.library_errors import one_line

INDEXES = (
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
SINGLE_FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin")
_HINT = "download the folder again"


def open_index(path: Path) -> LayerSource:
    """Open an index of shards; headers only are read until a layer's values are asked for.

    Raises:
        InputError: The index is no JSON map of tensors to files beside it, a shard is missing or broken, or does not
            hold what the index says.
    """
    tensors = index_tensors(path)
    neighbors = neighbors_of(tensors, read_config(path))
    return LayerSource(path=path, kind="checkpoint", layers=partial(layers_of, tensors, neighbors))


def index_tensors(path: Path) -> list[StoredTensor]:
    """List the tensors of all shards; errors as `open_index`."""
    weight_map = _weight_map(path)
    tensors: list[StoredTensor] = []
    for shard in sorted(set(weight_map.values())):
        held = {tensor.name: tensor for tensor in _shard(path, shard)}
        wanted = [name for name, file in weight_map.items() if file == shard]
        missing = [name for name in wanted if name not in held]
        if missing:
            raise InputError(f"shard {shard!r} does not hold tensor {missing[0]!r}", where=path, hint=_HINT)
        tensors += [held[name] for name in wanted]
    return tensors


def shard_names(path: Path) -> list[str]:
    """List the files that an index names, each once; errors as `open_index`."""
    return sorted(set(_weight_map(path).values()))


def _weight_map(path: Path) -> dict[str, str]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"no readable JSON: {one_line(error)}", where=path, hint=_HINT) from None
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise InputError("holds no weight_map of tensors to files", where=path, hint=_HINT)
    return weight_map


def _shard(index: Path, name: str) -> list[StoredTensor]:
    if Path(name).name != name or not name:
        raise InputError(f"shard {name!r} is not beside the index", where=index, hint=_HINT)
    path = index.parent / name
    try:
        found = path.is_file()
    except (OSError, ValueError):
        # A name that no file can have.
        found = False
    if not found:
        raise InputError(f"shard {name[:200]!r} is missing", where=index, hint=_HINT)
    return _reader(name)(path)


def _reader(name: str) -> Callable[[Path], list[StoredTensor]]:
    if name.endswith(".safetensors"):
        from nm2trt.layers.safetensors_reader import safetensors_tensors

        return safetensors_tensors
    from nm2trt.layers.torch_reader import torch_tensors

    return torch_tensors
