"""STEP: Adam trains dense until its second moments have settled; then they are held, and masks are learned.

Lu et al., "STEP: Learning N:M Structured Sparsity Masks from Scratch with Precondition" (ICML 2023). torch's own Adam
and AdamW do the work: where the second moments are held, their state is set before a step so that it lands where
STEP's rule says, and what it was is put back after the step. So an optimizer's state dict keeps its meaning
(`exp_avg_sq` is v of the switch), and a step that is skipped leaves everything as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nm2trt.errors import ConfigError
from nm2trt.training.layer_state import SparseLayer, local
from nm2trt.training.shards import as_sharded, is_dtensor, mesh_of, placements_of, sum_over_shards

EARLIEST_SWITCH, LATEST_SWITCH = 0.1, 0.5
"""Shares of all steps that the switch is clipped to, as in the paper."""

_STEPS_BETWEEN_GPU_CHECKS = 10
"""Reading the changes from a GPU waits for it."""


@dataclass(slots=True)
class _Update:
    """What an optimizer's state held before a step, and what it holds while it steps."""

    state: dict[str, Any]
    mean: torch.Tensor
    variance: torch.Tensor
    next_mean: torch.Tensor


class Precondition:
    """When the second moments have settled, and the steps with them held. One per sparsifier of method "step".

    Args:
        total_steps: Optimizer steps of the whole training.

    Attributes:
        switched_at: Optimizer steps that were trained dense; None before the switch.
    """

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self.switched_at: int | None = None
        self._changes: list[float] = []
        self._waiting: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []
        self._count = 0
        self._window, self._eps = 1, 0.0
        self._updates: dict[SparseLayer, _Update] = {}

    def copied(self) -> Precondition:
        """The same position, for a copied sparsifier."""
        copied = Precondition(self.total_steps)
        copied.load_state_dict(self.state_dict())
        return copied

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: when it switched, and the last mean changes of v."""
        self._read_changes()
        return {"switched_at": self.switched_at, "changes": list(self._changes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.switched_at, self._changes = state["switched_at"], list(state["changes"])
        self._waiting, self._sums, self._count, self._updates = [], [], 0, {}

    def observe(self, optimizer: torch.optim.Optimizer, layers: Sequence[SparseLayer]) -> None:
        """After a dense step of an optimizer: add up how far its second moments have moved.

        v_t - v_{t-1} = (1 - b2) / b2 * (g^2 - v_t), so v_{t-1} need not be kept.
        """
        by_mesh: dict[Any, tuple[SparseLayer, torch.Tensor]] = {}
        for layer, group in _stepped(optimizer, layers):
            state, gradient = optimizer.state.get(layer.parameter), layer.parameter.grad
            if not state or gradient is None:
                continue
            beta2 = float(group["betas"][1])
            self._window, self._eps = max(1, round(1 / (1 - beta2))), float(group["eps"])
            wide = torch.float32 if layer.bits.device.type == "mps" else torch.float64
            moved = local(gradient).square().sub_(local(state["exp_avg_sq"])).abs_().sum(dtype=wide)
            moved = moved * ((1 - beta2) / beta2)
            sharded = is_dtensor(layer.parameter)
            key = (id(mesh_of(layer.parameter)), tuple(placements_of(layer.parameter))) if sharded else moved.device
            by_mesh[key] = (layer, moved + by_mesh[key][1] if key in by_mesh else moved)
            self._count += layer.parameter.numel()
        self._sums += [sum_over_shards(moved, layer.parameter) for layer, moved in by_mesh.values()]

    def end_step(self, steps: int, layers: Sequence[SparseLayer], optimizers: Iterable[torch.optim.Optimizer]) -> bool:
        """After a dense step: whether masks begin now.

        Args:
            steps: Optimizer steps so far.
            layers: All sparse layers.
            optimizers: Those that have been observed.
        """
        if self._count:
            self._waiting.append(torch.stack([moved.to(self._sums[0].device) for moved in self._sums]).sum())
            self._waiting[-1] /= self._count
        waits = bool(self._waiting) and self._waiting[0].device.type == "cuda"
        self._sums, self._count = [], 0
        is_late = steps > LATEST_SWITCH * self.total_steps
        if not waits or is_late or steps % _STEPS_BETWEEN_GPU_CHECKS == 0:
            self._read_changes()
            if is_late or (steps > EARLIEST_SWITCH * self.total_steps and self._have_settled()):
                self._switch(steps, layers, optimizers)
        return self.switched_at is not None

    def _read_changes(self) -> None:
        found = torch.stack(self._waiting).tolist() if self._waiting else []
        self._waiting = []
        # A step that the loss scaler has skipped inside of the optimizer's kernel had no gradient.
        self._changes += [change for change in found if math.isfinite(change)]
        del self._changes[: -self._window]

    def _have_settled(self) -> bool:
        return bool(self._changes) and sum(self._changes) / len(self._changes) < self._eps

    def _switch(self, steps: int, layers: Sequence[SparseLayer], optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self.switched_at, self._changes = steps, []
        for layer in layers:
            layer.variance_steps = 0
        for optimizer in optimizers:
            for layer, _ in _stepped(optimizer, layers):
                layer.variance_steps = _steps_of(optimizer, layer)

    def hold_variance(self, optimizer: torch.optim.Optimizer, layers: Sequence[SparseLayer]) -> None:
        """Before a step with masks: the optimizer's state is set so that its step divides by sqrt(v*) + eps.

        Adam is given a gradient of zero. It multiplies the first moments by b1 and the second by b2, so they are set
        to (b1 * m + (1 - b1) * g) / b1 and v* * (1 - b2^t) / b2, where (1 - b2^t) is what its own correction of the
        bias takes out again.

        Args:
            optimizer: About to step.
            layers: All sparse layers; their gradients are what STEP's rule is to see.
        """
        scale = getattr(optimizer, "grad_scale", None)
        default = bool(getattr(optimizer, "maximize", False))
        for layer, group in _stepped(optimizer, layers):
            state, gradient = optimizer.state.get(layer.parameter), layer.parameter.grad
            if layer in self._updates or not state or gradient is None:
                continue
            if layer.variance_steps is None:
                # Made sparse after the switch.
                layer.variance_steps = _steps_of(optimizer, layer)
            if not layer.variance_steps:
                continue
            mean, variance = state["exp_avg"], state["exp_avg_sq"]
            beta1, beta2 = (float(beta) for beta in group["betas"])
            part = local(gradient).to(local(mean).dtype)
            if scale is not None:
                part = part * scale.to(part.device).reciprocal()
            sign = -1 if group.get("maximize", default) else 1
            ahead = torch.add(local(mean), part, alpha=sign * (1 - beta1) / beta1)
            correction = _bias_correction(state["step"], beta2) / (beta2 * (1 - beta2**layer.variance_steps))
            update = _Update(state, mean, variance, as_sharded(ahead, layer.parameter))
            state["exp_avg"] = update.next_mean
            state["exp_avg_sq"] = as_sharded(local(variance) * correction, layer.parameter)
            self._updates[layer] = update
            layer.give_zero_gradient()

    def release_variance(self, optimizer: torch.optim.Optimizer, *, stepped: bool) -> None:
        """After it, also where it raised: the state is the optimizer's own again, with the new first moments."""
        found = getattr(optimizer, "found_inf", None)
        for layer, update in self._updates.items():
            update.state["exp_avg"], update.state["exp_avg_sq"] = update.mean, update.variance
            layer.keep_zero_gradient()
            if not stepped:
                continue
            mean, new = local(update.mean), local(update.next_mean)
            mean.copy_(new if found is None else torch.where(found.to(mean.device) > 0, mean, new))
        self._updates = {}


def _stepped(
    optimizer: torch.optim.Optimizer, layers: Sequence[SparseLayer]
) -> list[tuple[SparseLayer, dict[str, Any]]]:
    """The layers of an optimizer, each with its parameter group."""
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    return [(layer, groups[id(layer.parameter)]) for layer in layers if id(layer.parameter) in groups]


def _steps_of(optimizer: torch.optim.Optimizer, layer: SparseLayer) -> int:
    """How many gradients the second moments of a layer have seen."""
    state = optimizer.state.get(layer.parameter)
    return int(state["step"]) if state else 0


def _bias_correction(step: Any, beta2: float) -> Any:
    """1 - b2^t of the step after `step` others; a float64 scalar on the GPU where the optimizer counts there."""
    if isinstance(step, torch.Tensor) and step.device.type == "cuda":
        return 1 - beta2 ** (step.to(torch.float64) + 1)
    return 1 - beta2 ** (float(step) + 1)


def why_not_step(optimizer: torch.optim.Optimizer) -> str | None:
    """Why STEP's rule cannot be had from an optimizer; None where it can."""
    name = type(optimizer).__name__
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return f"{name} has no second moments of torch's Adam or AdamW, which STEP holds"
    for group in optimizer.param_groups:
        coupled = not (isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay"))
        if group.get("amsgrad"):
            return f"{name} with amsgrad=True divides by the largest second moments, not by those that STEP holds"
        if float(group["betas"][0]) == 0:
            return f"{name} with beta1 = 0 keeps no first moments, which STEP steps along"
        if coupled and group["weight_decay"]:
            return f"{name} with weight_decay adds the decay to the gradient, and STEP's rule has it beside it"
    return None


def check_adam(layers: Sequence[SparseLayer], optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Refuse optimizers of sparse layers that STEP's rule cannot be had from.

    Raises:
        ConfigError: Says why, and what to use.
    """
    for optimizer in optimizers:
        if _stepped(optimizer, layers) and (reason := why_not_step(optimizer)):
            raise ConfigError(
                reason,
                where='method "step"',
                hint="use torch.optim.AdamW without amsgrad and with beta1 above 0, or method sr-ste",
            )
