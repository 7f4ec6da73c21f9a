"""The projection on a GPU: all weights of a step in one Triton kernel for each dtype, pattern and memory layout."""

from __future__ import annotations

import importlib.util
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from nm2trt.library_errors import one_line
from nm2trt.training.masks import INTEGERS
from nm2trt.training.snapshot import is_gapless

if TYPE_CHECKING:
    from nm2trt.training.projection import Split

LARGEST_M = 64
"""Ranks cost a pass over the group for each member; beyond this, torch's sort is used."""

_TILE = 1024
"""Weights of a program."""
_ALIGNMENT = 16
_KEPT_TABLES = 16
_TABLES: OrderedDict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = OrderedDict()


class KernelState:
    """Whether Triton's kernels are used; switched off where the first launch shows that they cannot be compiled."""

    off = False


def runs_on_gpu(weight: torch.Tensor) -> bool:
    """Whether the weight is where Triton's kernels run, and Triton is there and works."""
    return weight.is_cuda and not KernelState.off and _has_triton()


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def fits_kernel(split: Split) -> bool:
    """Whether weight, residual and mask bits lie in memory alike and without gaps, on a GPU with Triton."""
    weight, residual = split.weight, split.residual
    return (
        runs_on_gpu(weight)
        and type(weight.detach()) is torch.Tensor
        and weight.dtype in INTEGERS
        and split.pattern.m <= LARGEST_M
        and weight.numel() > 0
        and is_gapless(weight)
        and split.bits.stride() == weight.stride()
        and (residual is None or (residual.stride() == weight.stride() and residual.dtype == weight.dtype))
    )


@dataclass(frozen=True, slots=True)
class _Launch:
    """What one launch has in common."""

    n: int
    m: int
    dtype: torch.dtype
    device: torch.device
    adjacent: bool
    aligned: bool
    impose: bool
    with_residual: bool
    hold: bool


def split_on_gpu(splits: Sequence[Split]) -> list[torch.Tensor] | None:
    """Do all the splits, each of which `fits_kernel`; the host waits for nothing.

    Returns:
        For each an int64 scalar on its weight's device: how many mask bits changed. None, with a warning, where
        Triton cannot compile its kernels here; then nothing was changed.
    """
    by_launch: dict[_Launch, list[int]] = {}
    for index, split in enumerate(splits):
        by_launch.setdefault(_launch_of(split), []).append(index)
    changed: list[torch.Tensor | None] = [None] * len(splits)
    for launch, members in by_launch.items():
        flips = torch.zeros(len(members), dtype=torch.int64, device=launch.device)
        try:
            _run(launch, [splits[index] for index in members], flips)
        except Exception as error:
            if any(count is not None for count in changed):
                raise
            KernelState.off = True
            reason = one_line(error, whole=True)
            warnings.warn(
                f"Triton cannot compile the projection here ({reason}); it runs as torch operations, which costs a "
                "step of a large network a few milliseconds more",
                stacklevel=2,
            )
            return None
        for index, count in zip(members, flips.unbind(), strict=True):
            changed[index] = count
    return [count for count in changed if count is not None]


def _launch_of(split: Split) -> _Launch:
    weight, residual = split.weight, split.residual
    tensors = [weight, split.bits] if residual is None else [weight, split.bits, residual]
    return _Launch(
        n=split.pattern.n,
        m=split.pattern.m,
        dtype=weight.dtype,
        device=weight.device,
        adjacent=weight.stride(split.axis) == 1,
        aligned=all(tensor.data_ptr() % _ALIGNMENT == 0 for tensor in tensors),
        impose=split.impose,
        with_residual=residual is not None and split.impose,
        hold=split.hold,
    )


def _run(launch: _Launch, splits: Sequence[Split], flips: torch.Tensor) -> None:
    import triton
    import triton.language as tl

    from nm2trt.training.triton_kernels import split_groups

    kinds = {
        torch.float64: (tl.float64, tl.int64),
        torch.float32: (tl.float32, tl.int32),
        torch.float16: (tl.float16, tl.int16),
        torch.bfloat16: (tl.bfloat16, tl.int16),
    }
    floats, integers = kinds[launch.dtype]
    width = triton.next_power_of_2(launch.m)
    block = max(1, _TILE // width)
    table, owners = _tables(launch, splits, block)
    with torch.cuda.device(launch.device) if launch.device.type == "cuda" else nullcontext():
        split_groups[(owners.numel(),)](
            table,
            owners,
            flips,
            N=launch.n,
            M=launch.m,
            WIDTH=width,
            BLOCK=block,
            FLOAT=floats,
            INTEGER=integers,
            MAGNITUDE=torch.iinfo(INTEGERS[launch.dtype]).max,
            ADJACENT=launch.adjacent,
            ALIGNED=launch.aligned,
            IMPOSE=launch.impose,
            WITH_RESIDUAL=launch.with_residual,
            HOLD=launch.hold,
        )


def _tables(launch: _Launch, splits: Sequence[Split], block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each weight lies and which programs work on it; kept from step to step, since weights rarely move."""
    rows = []
    programs = 0
    for split in splits:
        groups = split.weight.numel() // launch.m
        residual = 0 if split.residual is None else split.residual.data_ptr()
        spread = split.weight.stride(split.axis)
        rows.append((split.weight.data_ptr(), residual, split.bits.data_ptr(), groups, spread, programs))
        programs += -(-groups // block)
    key = (launch.device, block, launch.m, tuple(rows))
    if key in _TABLES:
        _TABLES.move_to_end(key)
        return _TABLES[key]
    counts = [-(-row[3] // block) for row in rows]
    owners = torch.repeat_interleave(torch.arange(len(rows), dtype=torch.int32), torch.tensor(counts))
    table = torch.tensor(rows, dtype=torch.int64)
    found = (table.to(launch.device), owners.to(launch.device))
    _TABLES[key] = found
    if len(_TABLES) > _KEPT_TABLES:
        _TABLES.popitem(last=False)
    return found
