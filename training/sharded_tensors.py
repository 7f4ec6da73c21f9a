"""Tensors of a saved state in shards: each process writes its own part, any number of processes reads them back.

torch.distributed.checkpoint with its safetensors storage: unlike its default, whose metadata is a pickle, these files
hold numbers only and cannot run code. https://docs.pytorch.org/docs/stable/distributed.checkpoint.html
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from nm2trt.errors import InputError
from nm2trt.library_errors import one_line

MARK = "tensor in shards"
"""What stands for a tensor in the plain part: {MARK: its name}."""


def split_tensors(tree: Any, prefix: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """Take the tensors out of nested dicts and lists.

    Args:
        tree: The state.
        prefix: Of the tensors' names, which go on with the keys on the way, joined by "/".

    Returns:
        The same tree with a mark for each tensor, and the tensors by name.
    """
    if isinstance(tree, torch.Tensor):
        return {MARK: prefix}, {prefix: tree}
    entries: Any
    if isinstance(tree, Mapping):
        entries = tree.items()
    elif isinstance(tree, list | tuple):
        entries = enumerate(tree)
    else:
        return tree, {}
    plain: dict[Any, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for key, value in entries:
        plain[key], found = split_tensors(value, f"{prefix}/{key}")
        tensors |= found
    return (plain if isinstance(tree, Mapping) else list(plain.values())), tensors


def join_tensors(plain: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Undo `split_tensors`."""
    if isinstance(plain, Mapping):
        if plain.keys() == {MARK}:
            return tensors[plain[MARK]]
        return {key: join_tensors(value, tensors) for key, value in plain.items()}
    if isinstance(plain, list):
        return [join_tensors(value, tensors) for value in plain]
    return plain


def save_shards(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors below an empty folder; every process calls this with its parts, as DTensors or whole copies."""
    with _quiet():
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def load_shards(folder: Path, prototype: Callable[[str], torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """Read every tensor back; every process calls this.

    Args:
        folder: What `save_shards` wrote, with any number of processes.
        prototype: Gives for a name the tensor that is sharded as the result is to be. Where there is none, or one of
            another shape, the result is whole.

    Raises:
        InputError: A file is damaged or missing.
    """
    reader = HuggingFaceStorageReader(str(folder))
    try:
        saved: Any = reader.read_metadata().state_dict_metadata
        targets: dict[str, Any] = {
            name: _empty(saved[name].size, saved[name].properties.dtype, prototype(name)) for name in sorted(saved)
        }
        with _quiet():
            load(targets, storage_reader=reader)
    except Exception as error:
        raise InputError(f"cannot be read: {one_line(error)}", where=folder, hint="train again with --force") from error
    return targets


def _empty(size: torch.Size, dtype: torch.dtype, prototype: torch.Tensor | None) -> torch.Tensor:
    if isinstance(prototype, DTensor) and prototype.shape == size:
        local = torch.empty_like(prototype.to_local(), dtype=dtype)
        return DTensor.from_local(
            local,
            prototype.device_mesh,
            prototype.placements,
            run_check=False,
            shape=prototype.shape,
            stride=prototype.stride(),
        )
    return torch.empty(size, dtype=dtype)


@contextmanager
def _quiet() -> Any:
    """Without a process group torch warns that it takes this process to be the only one, which it is."""
    with warnings.catch_warnings():
        if not dist.is_initialized():
            warnings.filterwarnings("ignore", message="torch.distributed is")
        yield
