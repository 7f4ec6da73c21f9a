"""What the sparsifier keeps for one sparse weight: a residual and one byte per weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nm2trt.pattern import NMPattern
from nm2trt.training.projection import Split, project_all
from nm2trt.training.shards import check_whole_groups

_NOW, _PREVIOUS, _START = 1, 2, 4


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds: of a DTensor its shard, of any other all."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


@dataclass(slots=True)
class SparseLayer:
    """One sparse weight."""

    name: str
    parameter: nn.Parameter
    axis: int
    pattern: NMPattern
    residual: torch.Tensor | None
    """R, of the local part's shape; None where nothing is to grow back."""
    bits: torch.Tensor
    """uint8: bit 0 the mask now, bit 1 at the previous SAD record, bit 2 at the start."""
    flips: torch.Tensor
    """int64 scalar on the weight's device, so that counting never waits for the device."""

    @classmethod
    def of(
        cls, name: str, parameter: nn.Parameter, axis: int, pattern: NMPattern, *, with_residual: bool
    ) -> SparseLayer:
        """Make the state of a dense weight; nothing is projected yet.

        Raises:
            ConfigError: The weight is sharded along its reduction axis and some shard's border cuts a group.
        """
        check_whole_groups(name, parameter, axis, pattern.m)
        weight = local(parameter.detach())
        return cls(
            name=name,
            parameter=parameter,
            axis=axis,
            pattern=pattern,
            residual=torch.zeros_like(weight) if with_residual else None,
            bits=torch.zeros_like(weight, dtype=torch.uint8),
            flips=torch.zeros((), dtype=torch.int64, device=weight.device),
        )

    def weight(self) -> torch.Tensor:
        """The local part of the parameter, without its graph; state follows if it moved in memory."""
        weight = local(self.parameter.detach())
        if self.bits.stride() != weight.stride() or self.bits.device != weight.device:
            self._follow(weight)
        return weight

    def _follow(self, weight: torch.Tensor) -> None:
        # After model.to(memory_format=...) or model.to(device).
        self.bits = torch.empty_like(weight, dtype=torch.uint8).copy_(self.bits)
        self.flips = self.flips.to(weight.device)
        if self.residual is not None:
            self.residual = torch.empty_like(weight).copy_(self.residual)

    def mask(self) -> torch.Tensor:
        """Bool, True where kept."""
        return (self.bits & _NOW).bool()

    def restore(self, decay: float, scale: torch.Tensor | None) -> None:
        """Before a step: gradient += decay * R, weight += R.

        Args:
            decay: lambda.
            scale: Loss scale that the gradient still carries; None when it carries none.
        """
        if self.residual is None:
            return
        weight = self.weight()
        gradient = self.parameter.grad
        if gradient is not None and decay:
            pulled = local(gradient)
            if scale is None:
                pulled.add_(self.residual, alpha=decay)
            else:
                pulled.add_(self.residual * (decay * scale.to(pulled.device)))
        weight.add_(self.residual)

    def mask_gradient(self) -> None:
        """Before a step with held masks: pruned weights get no gradient."""
        if self.parameter.grad is not None:
            local(self.parameter.grad).mul_(self.mask())

    def begin(self) -> None:
        """Make the mask of this moment the start and the previous record."""
        self.bits = self.bits.bitwise_and(_NOW) * (_NOW | _PREVIOUS | _START)
        self.flips.zero_()

    def counts(self) -> torch.Tensor:
        """int64 [weights, bits changed since the previous record, since the start, flips]; starts a new record."""
        now = self.bits & _NOW
        previous = (now != (self.bits & _PREVIOUS) // _PREVIOUS).count_nonzero()
        start = (now != (self.bits & _START) // _START).count_nonzero()
        self.bits.bitwise_and_(_NOW | _START).bitwise_or_(now * _PREVIOUS)
        weights = torch.tensor(self.bits.numel(), device=self.bits.device)
        return torch.stack([weights, previous, start, self.flips])


def restore_all(layers: Sequence[SparseLayer], decay: float, scale: torch.Tensor | None) -> None:
    """`SparseLayer.restore` of all layers; on a GPU by torch's multi-tensor kernels, a few launches for any number."""
    grown = [layer for layer in layers if layer.residual is not None]
    if scale is not None or not _all_on_gpu(grown):
        # On a CPU this order finds the residual of a layer in cache the second time.
        for layer in grown:
            layer.restore(decay, scale)
        return
    weights = [layer.weight() for layer in grown]
    residuals = [layer.residual for layer in grown if layer.residual is not None]
    pulled = [
        (local(layer.parameter.grad), residual)
        for layer, residual in zip(grown, residuals, strict=True)
        if layer.parameter.grad is not None
    ]
    if decay and pulled:
        torch._foreach_add_([gradient for gradient, _ in pulled], [residual for _, residual in pulled], alpha=decay)
    if weights:
        torch._foreach_add_(weights, residuals)


def _all_on_gpu(layers: Sequence[SparseLayer]) -> bool:
    return all(local(layer.parameter.detach()).is_cuda for layer in layers)


def split_all(layers: Sequence[SparseLayer], *, impose: bool, hold: bool) -> None:
    """After a step: split every W into W~ and R, by new masks or by the old ones, and count the flips."""
    changed = project_all(
        [
            Split(layer.weight(), layer.residual, layer.bits, layer.pattern, layer.axis, impose=impose, hold=hold)
            for layer in layers
        ]
    )
    torch._foreach_add_([layer.flips for layer in layers], changed)


def zero_pruned(layers: Sequence[SparseLayer]) -> None:
    """After a step with held masks: what momentum or decay put back goes; R stays as it is."""
    project_all(
        [Split(layer.weight(), None, layer.bits, layer.pattern, layer.axis, impose=True, hold=True) for layer in layers]
    )
