"""The network under test, its inputs, and its dense counterpart."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from nm2trt.artifacts import NetworkRecord
from nm2trt.errors import InputError
from nm2trt.ort.random_inputs import draw_tensor, is_mask

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class InputLike(Protocol):
    """One input of a network."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]:
        """One sample, without the batch."""

    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def keyword(self) -> bool:
        """Passed by its name and not by its place."""

    @property
    def below(self) -> int | None:
        """Integers are drawn from 0 to before this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchNetwork:
    """A module in evaluation mode, float32, with what it takes."""

    module: nn.Module
    inputs: Sequence[InputLike]
    record: NetworkRecord
    note: str = ""


@dataclass(frozen=True, slots=True)
class Feeds:
    """Inputs on the device."""

    positional: tuple[torch.Tensor, ...]
    keywords: Mapping[str, torch.Tensor]

    def run(self, module: Any) -> Any:
        """Call a module on them."""
        return module(*self.positional, **self.keywords)


def draw_feeds(inputs: Sequence[InputLike], batch: int, *, dtype: torch.dtype, device: str, seed: int) -> Feeds:
    """Draw inputs: normal noise for floating point, images channels_last; integers below their bound."""
    generator = torch.Generator(device).manual_seed(seed)
    positional: list[torch.Tensor] = []
    keywords: dict[str, torch.Tensor] = {}
    for one in inputs:
        shape = (batch, *one.shape)
        if one.dtype in ("float32", "float16", "bfloat16"):
            value = draw_tensor(generator, shape, dtype)
            if value.ndim == 4:
                value = value.contiguous(memory_format=torch.channels_last)
        elif is_mask(one.name):
            value = torch.ones(shape, dtype=getattr(torch, one.dtype), device=device)
        else:
            value = draw_tensor(generator, shape, getattr(torch, one.dtype), below=one.below or 2)
        if one.keyword:
            keywords[one.name] = value
        else:
            positional.append(value)
    return Feeds(tuple(positional), keywords)


def placed(module: nn.Module, *, dtype: torch.dtype, device: str) -> nn.Module:
    """Copy a network to a device in a dtype; convolutions get channels_last weights."""
    moved = copy.deepcopy(module).to(device=device, dtype=dtype).eval()
    if any(isinstance(one, nn.Conv2d) for one in moved.modules()):
        moved = moved.to(memory_format=torch.channels_last)
    return moved


def filled(module: nn.Module, names: Sequence[str], *, seed: int) -> nn.Module:
    """Copy a network with the zeros of the named weights replaced by draws from the same weight's non-zeros."""
    dense = copy.deepcopy(module)
    parameters = dict(dense.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in names:
            weight = parameters[name]
            zeros = weight == 0
            kept = weight[~zeros]
            if zeros.any() and kept.numel():
                picks = torch.randint(kept.numel(), (int(zeros.sum()),), generator=generator).to(weight.device)
                weight[zeros] = kept[picks]
    return dense


def check_same_modules(dense: nn.Module, sparse: nn.Module, *, where: str) -> None:
    """Check that two networks have the same parameters.

    Raises:
        InputError: They differ in a name or a shape.
    """
    mine, theirs = ({name: tuple(one.shape) for name, one in net.named_parameters()} for net in (dense, sparse))
    different = sorted(set(mine.items()) ^ set(theirs.items()))
    if different:
        raise InputError(
            f"the two networks differ: {different[0][0]} {list(different[0][1])}",
            where=where,
            hint="give the dense-trained network of the same architecture",
        )


def zero_share(module: nn.Module) -> float:
    """Share of zeros among the weights of two and more dimensions, 0 to 1."""
    weights = [one for one in module.parameters() if one.ndim > 1]
    total = sum(one.numel() for one in weights)
    return sum(int((one == 0).sum()) for one in weights) / total if total else 0.0


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Floating-point tensors in whatever a network returns."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in tensors_of(value)]
    if isinstance(output, (tuple, list)):
        return [tensor for value in output for tensor in tensors_of(value)]
    return []
