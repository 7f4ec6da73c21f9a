"""What the sparsifier keeps for one sparse weight: a residual and one byte per weight."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from nm2trt.pattern import NMPattern
from nm2trt.training.projection import Split, project_all
from nm2trt.training.shards import check_whole_groups
from nm2trt.training.snapshot import Snapshot

_NOW, _PREVIOUS, _START = 1, 2, 4


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds: of a DTensor its shard, of any other all."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


@dataclass(frozen=True, slots=True)
class Aside:
    """A layer's state of the last step, kept while other weights are loaded in its place."""

    snapshot: Snapshot
    bits: torch.Tensor
    residual: torch.Tensor | None


@dataclass(slots=True, eq=False)
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
    is_whole: bool = False
    """Whether the residual holds all of W, as the soft threshold of S-STE needs."""
    factor: float = 0.0
    """What the parameter holds of pruned weights; 0 but while a decaying mask fades."""
    kept: int | None = None
    """N of the moment while the structure of a mask decays; None is the pattern's own."""
    beta: torch.Tensor | None = None
    """Scale of S-STE, from its first step on."""
    variance_steps: int | None = None
    """With STEP, how many gradients the held second moments have seen; 0 where there were none to hold."""
    snapshot: Snapshot = field(default_factory=Snapshot)
    """Of the weight as the last step left it."""
    is_open: bool = False
    """Whether the parameter holds W at the moment, as it does while the optimizer steps."""
    is_spent: bool = False
    """Whether the residual's memory holds something else until the weight is split again."""
    gradients: tuple[torch.Tensor, torch.Tensor, int] | None = None
    """(the task's, the one that the optimizer is given, the latter's version) while it steps."""
    rewritten: tuple[int, torch.Tensor | None] | None = None
    """(steps at that moment, some of the values) of weights that replaced the layer's outside of a step."""
    aside: Aside | None = None
    """Until the next step: what to go back to where the weights before come back."""
    stepped_gradient: tuple[weakref.ref[torch.Tensor], int] | None = None
    """The gradient that the last step was given, and its version."""

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

    def copied(self, memo: dict[int, Any]) -> SparseLayer:
        """The same state for the copy of the parameter that `copy.deepcopy` has made or makes."""
        return SparseLayer(
            name=self.name,
            parameter=copy.deepcopy(self.parameter, memo),
            axis=self.axis,
            pattern=self.pattern,
            residual=None if self.residual is None else self.residual.clone(),
            bits=self.bits.clone(),
            flips=self.flips.clone(),
            is_whole=self.is_whole,
            factor=self.factor,
            kept=self.kept,
            beta=None if self.beta is None else self.beta.clone(),
            variance_steps=self.variance_steps,
            rewritten=self.rewritten,
        )

    @property
    def current_pattern(self) -> NMPattern:
        """What masks are made by now."""
        return self.pattern if self.kept is None else NMPattern(self.kept, self.pattern.m)

    def weight(self) -> torch.Tensor:
        """The local part of the parameter, without its graph; state follows if it moved in memory."""
        weight = local(self.parameter.detach())
        residual = self.residual
        if (
            self.bits.stride() != weight.stride()
            or self.bits.device != weight.device
            or (residual is not None and residual.dtype != weight.dtype)
        ):
            self._follow(weight)
        return weight

    def _follow(self, weight: torch.Tensor) -> None:
        # After model.to(memory_format=...), model.to(device) or model.to(dtype).
        self.bits = torch.empty_like(weight, dtype=torch.uint8).copy_(self.bits)
        self.flips = self.flips.to(weight.device)
        if self.residual is not None:
            self.residual = torch.empty_like(weight).copy_(self.residual)

    def mask(self) -> torch.Tensor:
        """Bool, True where kept."""
        return (self.bits & _NOW).bool()

    def dense_weight(self) -> torch.Tensor:
        """W = W~ + R of the local part, copied."""
        weight = self.weight().clone()
        if self.residual is not None and not self.is_open:
            self._open(weight)
        return weight

    def _open(self, weight: torch.Tensor) -> None:
        """Make W of what the parameter holds, in place."""
        if self.residual is None:
            return
        if self.is_whole:
            weight.copy_(self.residual)
        elif self.factor:
            torch.where(self.mask(), weight, self.residual, out=weight)
        else:
            weight.add_(self.residual)

    def restore(self) -> None:
        """Before a step: weight += R."""
        if self.residual is None or self.is_open:
            return
        self._open(self.weight())
        self.is_open = True

    def alter_gradient(self, decay: float, scale: torch.Tensor | None) -> None:
        """Before a step: the optimizer is given gradient + decay * R, in the memory of R.

        W holds all of R while the optimizer steps, so that this costs no memory, and the task's gradient stays as it
        is for whoever reads it afterwards.

        Args:
            decay: lambda, negated for an optimizer that maximizes.
            scale: Loss scale that the gradient still carries; None when it carries none.
        """
        gradient, residual = self.parameter.grad, self.residual
        if gradient is None or residual is None or not decay or self.gradients is not None:
            return
        weight, part = self.weight(), local(gradient)
        if self.is_spent:
            torch.where(self.mask(), weight.new_zeros(()), weight, out=residual)
        if part.layout != torch.strided or part.dtype != residual.dtype or part.device != residual.device:
            self._swap(
                gradient, part + residual.to(part.device, part.dtype) * (decay if scale is None else decay * scale)
            )
            return
        self.is_spent = True
        if scale is None:
            torch.add(part, residual, alpha=decay, out=residual)
        else:
            residual.mul_(decay * scale.to(residual.device)).add_(part)
        self._swap(gradient, residual.detach())

    def may_join(self) -> bool:
        """Whether the residual is R and of the gradient's kind, so that many can be altered at once."""
        gradient, residual = self.parameter.grad, self.residual
        if gradient is None or residual is None or self.is_spent:
            return False
        part = local(gradient)
        return part.layout == torch.strided and part.dtype == residual.dtype and part.device == residual.device

    def give_residual(self) -> None:
        """Give the optimizer the residual's memory as its gradient."""
        if self.parameter.grad is not None and self.residual is not None:
            self._swap(self.parameter.grad, self.residual.detach())

    def mask_gradient(self) -> None:
        """Before a step with held masks: the optimizer is given no gradient for pruned weights."""
        gradient = self.parameter.grad
        if gradient is not None and self.gradients is None:
            self._swap(gradient, local(gradient) * self.mask())

    def give_zero_gradient(self) -> None:
        """Before a step whose gradient has gone into the optimizer's state already: give it zeros."""
        gradient = self.parameter.grad
        if gradient is None:
            return
        if self.gradients is None:
            self._swap(gradient, torch.zeros_like(local(gradient)))
            return
        local(self.gradients[1]).zero_()
        self.keep_zero_gradient()

    def keep_zero_gradient(self) -> None:
        """After such a step: zeros that a kernel has written again are no sign of `zero_grad`."""
        if self.gradients is not None:
            task, altered, _ = self.gradients
            self.gradients = (task, altered, altered._version)  # noqa: SLF001

    def _swap(self, gradient: torch.Tensor, altered: torch.Tensor) -> None:
        whole: Any = gradient
        if hasattr(whole, "to_local"):
            altered = type(whole).from_local(
                altered,
                whole.device_mesh,
                whole.placements,
                run_check=False,
                shape=whole.shape,
                stride=whole.stride(),
            )
        self.gradients = (gradient, altered, altered._version)  # noqa: SLF001
        self.parameter.grad = altered

    def restore_gradient(self, unscale: torch.Tensor | None) -> None:
        """After a step: the parameter's gradient is the task's again, unless the step has set another one.

        Args:
            unscale: What the optimizer has multiplied the gradient with in place; None where it did not.
        """
        if self.gradients is None:
            return
        gradient, altered, version = self.gradients
        self.gradients = None
        if self.parameter.grad is altered:
            self.parameter.grad = gradient
            if unscale is not None:
                local(gradient).mul_(unscale)
            elif altered._version != version and not local(altered).any():  # noqa: SLF001
                # A step that ends with gradients of zero means the task's.
                gradient.zero_()
        del altered
        if self.residual is not None and self.is_spent and _users(self.residual) > _USERS_OF_ONE:
            # The optimizer has kept the gradient without copying it, so its memory is not ours any more.
            self.residual = torch.empty_like(self.residual)

    def end_step(self) -> None:
        """After a step: forget what the weights were before it, and know the gradient that it was given."""
        gradient = self.parameter.grad
        self.aside = None
        self.stepped_gradient = None if gradient is None else (weakref.ref(gradient), _version(gradient))

    def has_new_gradient(self) -> bool:
        """Whether there is a gradient, not all zero, that no step was given yet."""
        gradient = self.parameter.grad
        if gradient is None:
            return False
        if self.stepped_gradient is not None:
            seen, version = self.stepped_gradient
            if seen() is gradient and _version(gradient) == version:
                return False
        return bool(local(gradient).any())

    def set_aside(self) -> None:
        """Keep mask and residual of the last step, and give the layer new memory for both.

        A state that was given out shares the old memory, and is often loaded into next.
        """
        if self.aside is None and self.snapshot.saved is not None:
            snapshot = replace(self.snapshot, saved=self.snapshot.saved.clone(), live=None)
            self.aside = Aside(snapshot, self.bits, self.residual)
        self.bits = self.bits.clone()
        if self.residual is not None:
            self.residual = torch.empty_like(self.residual)

    def take_back(self) -> None:
        """Go back to what was set aside."""
        if self.aside is not None:
            self.bits, self.residual = self.aside.bits, self.aside.residual
            self.aside = self.rewritten = None

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


def _version(tensor: torch.Tensor) -> int:
    version: int = getattr(tensor, "_local_tensor", tensor)._version  # noqa: SLF001 -- torch has no public name for it
    return version


def _users(tensor: torch.Tensor) -> int:
    """How many tensors share the memory."""
    count: int = torch._C._storage_Use_Count(local(tensor).untyped_storage()._cdata)  # noqa: SLF001 -- torch counts them nowhere else
    return count


_USERS_OF_ONE = _users(torch.zeros(1))


def restore_all(layers: Sequence[SparseLayer]) -> None:
    """`SparseLayer.restore` of all layers; on a GPU by torch's multi-tensor kernels, a few launches for any number."""
    grown = [layer for layer in layers if layer.residual is not None and not layer.is_open]
    if not _all_on_gpu(grown) or any(layer.is_whole or layer.factor for layer in grown):
        for layer in grown:
            layer.restore()
        return
    if grown:
        torch._foreach_add_(
            [layer.weight() for layer in grown], [layer.residual for layer in grown if layer.residual is not None]
        )
    for layer in grown:
        layer.is_open = True


def alter_gradients(layers: Sequence[SparseLayer], decay: float, scale: torch.Tensor | None) -> None:
    """`SparseLayer.alter_gradient` of all layers; on a GPU by torch's multi-tensor kernels, as `restore_all`."""
    pulled = [
        layer
        for layer in layers
        if layer.residual is not None and layer.parameter.grad is not None and layer.gradients is None
    ]
    if scale is not None or not decay or not _all_on_gpu(pulled) or not all(layer.may_join() for layer in pulled):
        for layer in pulled:
            layer.alter_gradient(decay, scale)
        return
    if pulled:
        residuals = [layer.residual for layer in pulled if layer.residual is not None]
        torch._foreach_mul_(residuals, decay)
        torch._foreach_add_(
            residuals, [local(layer.parameter.grad) for layer in pulled if layer.parameter.grad is not None]
        )
    for layer in pulled:
        layer.is_spent = True
        layer.give_residual()


def _all_on_gpu(layers: Sequence[SparseLayer]) -> bool:
    return all(local(layer.parameter.detach()).is_cuda for layer in layers)


def split_all(layers: Sequence[SparseLayer], *, impose: bool, hold: bool, count: bool = True) -> None:
    """After a step: split every W into W~ and R, by new masks or by the old ones, and count the flips."""
    changed = project_all(
        [
            Split(
                layer.weight(), layer.residual, layer.bits, layer.current_pattern, layer.axis, impose=impose, hold=hold
            )
            for layer in layers
        ]
    )
    for layer in layers:
        layer.is_open = layer.is_spent = False
    if count and layers:
        torch._foreach_add_([layer.flips for layer in layers], changed)


def zero_pruned(layers: Sequence[SparseLayer]) -> None:
    """After a step with held masks: what momentum or decay put back goes; R stays as it is."""
    project_all(
        [Split(layer.weight(), None, layer.bits, layer.pattern, layer.axis, impose=True, hold=True) for layer in layers]
    )
