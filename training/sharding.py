"""FSDP2: parameters as DTensors sharded on dimension 0, so that groups along the reduction axis stay whole.

torch's `fully_shard` is used as it is. accelerate's own FSDP2 needs a GPU, and takes the optimizer's parameters over;
here the optimizer is made from the sharded parameters, and the sparsifier works on each process's part.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from nm2trt.errors import ConfigError


def check_launch(*, fsdp: bool, precision: str) -> None:
    """Refuse before any work is done.

    Raises:
        ConfigError: `--fsdp` in a single process, with fp16's loss scaling, or sharding asked for in accelerate's way.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ConfigError(
            "accelerate launch was given --use_fsdp, which would shard a second time",
            hint="leave it out and give nm2trt train --fsdp",
        )
    if not fsdp:
        return
    if precision == "fp16":
        raise ConfigError("fp16's loss scale is not shared between shards", where="--fsdp", hint="use --precision bf16")
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise ConfigError(
            "there is one process and nothing to shard over",
            where="--fsdp",
            hint="start it with torchrun --nproc-per-node N -m nm2trt train, or give --no-fsdp",
        )


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to the device and shard it over all processes: block by block, then what is left.

    A block is an element of an `nn.Sequential` or `nn.ModuleList` that has modules of its own, such as a residual
    block or a transformer layer: the usual units of FSDP.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    model.to(device)
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _blocks(model: nn.Module) -> list[nn.Module]:
    found = [
        element
        for module in model.modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
        for element in module
        if any(True for _ in element.children()) and element is not model
    ]
    # Inner blocks first, as fully_shard asks for; `modules` lists outer ones first.
    return list(dict.fromkeys(reversed(found)))


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was here."""
    return isinstance(model, FSDPModule)


def share_buffers(model: nn.Module) -> None:
    """Give the first process's buffers to all, as DDP does.

    Batch norm's running statistics are each process's own; records and the checkpoint are of the first one's.
    """
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def reshard(model: nn.Module) -> None:
    """Free the weights that a forward pass without a backward pass leaves gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tree: Any) -> Any:
    """Gather every DTensor in nested dicts and lists onto the CPU; every process must call this."""
    if isinstance(tree, DTensor):
        return tree.full_tensor().cpu()
    if isinstance(tree, Mapping):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [whole(value) for value in tree]
    return tree


def like(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A whole tensor in the form of `target`: this process's part of it, where that is sharded."""
    if not isinstance(target, DTensor) or value.shape != target.shape:
        return value
    # Every process has read the same file, so nothing needs to be sent.
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
