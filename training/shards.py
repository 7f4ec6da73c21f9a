"""Weights that several processes share as DTensors: which part each one holds, in any mesh and on any axis.

A DTensor's placements say for each dimension of the process mesh whether the tensor is copied or cut along one of its
axes. Everything here follows from the placements alone, so every process comes to the same answer without being asked.
torch.distributed is imported only where a DTensor is at hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from nm2trt.errors import ConfigError

_WITHOUT_ZERO = (
    "shard with torch.distributed.fsdp.fully_shard (FSDP2), or train without ZeRO: DDP, and "
    "torch.distributed.optim.ZeroRedundancyOptimizer where the optimizer's state is too large"
)


def is_dtensor(tensor: object) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def check_shards(model: nn.Module) -> None:
    """Refuse a network whose parameters have lost their shapes, on every process alike.

    Raises:
        ConfigError: FSDP1 or DeepSpeed's ZeRO-3 holds the weights, or they are on the meta device.
    """
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel" or hasattr(module, "_flat_param"):
            raise _flattened(name)
    for name, parameter in model.named_parameters():
        if getattr(parameter, "_fsdp_flattened", False):
            raise _flattened(name.rpartition(".")[0])
        if hasattr(parameter, "ds_id") and hasattr(parameter, "ds_tensor"):
            raise ConfigError(
                "DeepSpeed's ZeRO-3 has partitioned the weights into flat pieces, in which N:M groups have no meaning",
                where=f"parameter {name}",
                hint=_WITHOUT_ZERO,
            )
        if parameter.is_meta and parameter.dim() >= 2:
            raise ConfigError(
                "is on the meta device and has no values yet",
                where=f"parameter {name}",
                hint="call to_empty() and initialize or load the weights, then sparsify",
            )


def check_master_weights(chain: Sequence[object]) -> None:
    """Refuse DeepSpeed's optimizers that step flat copies of the weights (ZeRO-1 to 3, its fp16 and bf16 optimizers).

    What is put back into a parameter for such a step is not what the step updates, and is overwritten after it
    (deepspeed/runtime/zero/stage_1_and_2.py: `single_partition_of_fp32_groups` are clones).

    Args:
        chain: The optimizer and those inside of it.

    Raises:
        ConfigError: One of them is of that kind.
    """
    for one in chain:
        if type(one).__module__.startswith("deepspeed.runtime.") and not isinstance(one, torch.optim.Optimizer):
            raise ConfigError(
                f"DeepSpeed's {type(one).__name__} steps flat copies of the weights, which no projection reaches",
                where="optimizer",
                hint=_WITHOUT_ZERO,
            )


def _flattened(module_name: str) -> ConfigError:
    return ConfigError(
        "FSDP1 (FullyShardedDataParallel) has flattened the weights, so their N:M groups are no longer to be found",
        where=f"module {module_name or '(the root)'}",
        hint="shard with torch.distributed.fsdp.fully_shard (FSDP2), then sparsify",
    )


def check_whole_groups(name: str, parameter: torch.Tensor, axis: int, m: int) -> None:
    """Refuse a weight whose groups of M along `axis` would be cut by a shard's border.

    Raises:
        ConfigError: On every process alike, whether or not its own shard is whole.
    """
    if not any(_sharded_axis(placement, parameter.dim()) == axis for placement in placements_of(parameter)):
        return
    size = parameter.shape[axis]
    for coordinate in itertools.product(*map(range, mesh_of(parameter).shape)):
        held = held_indices(parameter, axis, coordinate)
        if len(held) % m or not torch.equal(held, _whole_groups(held, m)):
            raise ConfigError(
                f"sharded along its reduction axis {axis}: the process at {tuple(coordinate)} of the mesh holds "
                f"{len(held)} of {size}, which cuts groups of {m}",
                where=f"layer {name}",
                hint=f"give every process a multiple of {m}, shard another axis, or exclude the layer",
            )


def _whole_groups(held: torch.Tensor, m: int) -> torch.Tensor:
    """The indices that `held` would be if each run of M were one aligned group."""
    first = held[::m] // m * m
    return (first[:, None] + torch.arange(m)).flatten()


def placements_of(tensor: Any) -> Sequence[Any]:
    """A DTensor's placements; none of any other tensor."""
    return tensor.placements if is_dtensor(tensor) else ()


def mesh_of(tensor: Any) -> Any:
    """A DTensor's process mesh."""
    return tensor.device_mesh


def _sharded_axis(placement: Any, dimensions: int) -> int | None:
    # torch's strided shards, which FSDP2 makes of weights that tensor parallelism has sharded, deny being shards.
    axis = getattr(placement, "dim", None)
    return None if axis is None else axis % dimensions


def held_indices(tensor: Any, axis: int, coordinate: Sequence[int] | None = None) -> torch.Tensor:
    """Indices along one axis of a DTensor that one process holds, int64 [held], ascending.

    Args:
        tensor: The DTensor.
        axis: Of the whole tensor.
        coordinate: Of the process in the mesh; None takes this process.
    """
    mesh = mesh_of(tensor)
    place: Sequence[int] = coordinate if coordinate is not None else (mesh.get_coordinate() or ())
    index = torch.arange(tensor.shape[axis])
    for dimension, placement in enumerate(tensor.placements):
        if _sharded_axis(placement, tensor.dim()) == axis:
            # A strided shard takes the same piece of each of the shards that were made before it.
            factor = int(getattr(placement, "split_factor", 1))
            count = mesh.size(dimension)
            index = torch.cat([_chunks(piece, count)[place[dimension]] for piece in _chunks(index, factor)])
    return index


def _chunks(index: torch.Tensor, count: int) -> list[torch.Tensor]:
    """torch.chunk, with empty pieces at the end where there are fewer entries than pieces."""
    found = list(torch.chunk(index, count)) if len(index) else []
    return found + [index[:0]] * (count - len(found))


def part_of(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that goes with a parameter, without a collective where that is possible.

    Args:
        value: A DTensor (moved to the parameter's placements if it has others), a whole tensor, or already the part.
        parameter: The parameter that it belongs to.

    Raises:
        ConfigError: The shapes do not fit.
    """
    if is_dtensor(value):
        if is_dtensor(parameter) and value.shape == parameter.shape:
            moved: Any = value
            if tuple(moved.placements) != tuple(placements_of(parameter)) or moved.device_mesh != mesh_of(parameter):
                moved = moved.redistribute(mesh_of(parameter), placements_of(parameter))
            part: torch.Tensor = moved.to_local()
            return part
        whole: Any = value
        value = whole.full_tensor()
    if not is_dtensor(parameter):
        if value.shape != parameter.shape:
            raise ConfigError(f"a saved tensor is {list(value.shape)} and the weight is {list(parameter.shape)}")
        return value
    if value.shape == parameter.shape:
        for axis in range(parameter.dim()):
            held = held_indices(parameter, axis)
            if len(held) != value.shape[axis]:
                value = value.index_select(axis, held.to(value.device))
        return value
    own: Any = parameter
    if value.shape == own.to_local().shape:
        return value
    raise ConfigError(f"a saved tensor is {list(value.shape)} and the weight is {list(parameter.shape)}")


def align_gradient(parameter: torch.Tensor) -> None:
    """Bring a gradient to its parameter's placements, so that what is added to each part is added once.

    Under DTensor's own data or tensor parallelism a gradient may still be a sum that nobody has carried out.
    """
    gradient: Any = parameter.grad
    if gradient is None or not is_dtensor(gradient):
        return
    if tuple(gradient.placements) != tuple(placements_of(parameter)):
        parameter.grad = gradient.redistribute(mesh_of(parameter), placements_of(parameter))


def as_sharded(part: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A tensor that goes with a parameter as a DTensor with the parameter's placements; it shares the part's memory.

    Args:
        part: Of the shape of this process's part of the parameter.
        parameter: A DTensor; `part` itself is returned for any other.
    """
    return _distributed(part, parameter, parameter.shape, parameter.stride()) if is_dtensor(parameter) else part


def _distributed(part: torch.Tensor, parameter: Any, shape: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
    from torch.distributed.tensor import DTensor

    found: torch.Tensor = DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=tuple(stride),
    )
    return found


def count_as_sharded(count: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A count of what this process's part holds, in a form that survives a checkpoint and another number of processes.

    Sharded as its weight is and 1 long on every axis that is not cut; the first entry of each part has the count and
    all others are 0. So the sum over all entries is the count of the whole weight, whoever holds them.

    Args:
        count: int64 scalar.
        parameter: The weight; `count` itself is returned where it is no DTensor.
    """
    if not is_dtensor(parameter):
        return count
    own: Any = parameter
    cut = {_sharded_axis(placement, parameter.dim()) for placement in own.placements}
    shape = [size if axis in cut else 1 for axis, size in enumerate(parameter.shape)]
    local = own.to_local().shape
    part = count.new_zeros([local[axis] if axis in cut else 1 for axis in range(len(local))])
    if part.numel():
        part.view(-1)[0] = count
    return _distributed(part, parameter, shape, torch.empty(shape, device="meta").stride())


def own_count(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This process's share of what `count_as_sharded` gave, or of a whole count, which goes to the first part.

    Returns:
        int64 scalar.
    """
    if is_dtensor(value):
        if is_dtensor(parameter):
            own: Any = value
            part: torch.Tensor = own.to_local()
            return part.sum()
        whole: Any = value
        value = whole.full_tensor()
    total = value.sum()
    if not is_dtensor(parameter):
        return total
    coordinate = mesh_of(parameter).get_coordinate() or ()
    first = all(
        place == 0
        for place, placement in zip(coordinate, placements_of(parameter), strict=True)
        if _sharded_axis(placement, parameter.dim()) is not None
    )
    return total if first else torch.zeros_like(total)


def sum_over_shards(counts: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Sum counts over all parts of a weight, in place: over every mesh dimension that cuts it and none that copies it.

    Every process that holds a part must call this.
    """
    for group in shard_groups(parameter):
        torch.distributed.all_reduce(counts, group=group)
    return counts


def shard_groups(parameter: Any) -> Iterator[Any]:
    """The process group of each mesh dimension that cuts the parameter."""
    for dimension, placement in enumerate(placements_of(parameter)):
        if _sharded_axis(placement, parameter.dim()) is not None:
            yield parameter.device_mesh.get_group(dimension)
