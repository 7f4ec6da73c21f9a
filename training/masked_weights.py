"""The weights of one sparsifier and what happens to them around a step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from nm2trt.errors import ConfigError
from nm2trt.training.attachment import ModelLinks, attach
from nm2trt.training.layer_state import SparseLayer, alter_gradients, restore_all, split_all, zero_pruned
from nm2trt.training.methods import MethodRule
from nm2trt.training.outside_writes import Write, classify, find_writes, follow_writes, take_weights
from nm2trt.training.precondition import Precondition
from nm2trt.training.shards import align_gradient
from nm2trt.training.snapshot import take_snapshots
from nm2trt.training.soft_projection import harden, soften

_NO_BACKWARD = -1
_STEPS_BETWEEN_GPU_CHECKS = 100
"""Reading values from a GPU waits for it."""


class MaskedWeights:
    """Splits the weights after each step and puts them together before it; `StepHooks` calls it.

    Args:
        model: The network, without its wrappers.
        rule: The method and its schedule.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rule: MethodRule,
    ) -> None:
        self.model = model
        self.rule = rule
        self.method = rule.method
        self.precondition = Precondition(rule.total_steps or 0) if rule.method == "step" else None
        """Of "step": when masks begin, and Adam's steps after that."""
        self._stepping: list[torch.optim.Optimizer] = []
        self.steps = 0
        self.frozen = rule.method == "asp"
        self.layers: list[SparseLayer] = []
        self.is_open = False
        self._dense_section = False
        self.adopt: Callable[[Sequence[SparseLayer]], None] = lambda _: None
        """Called with layers whose parameters are not the model's any more: replaces them, or raises."""
        self._handles: dict[SparseLayer, RemovableHandle] = {}
        self._links: ModelLinks | None = None
        self.is_retired = False
        """Whether a later `sparsify` has taken all layers over."""
        self.is_detached = False
        self.end: Callable[[], None] = lambda: None
        """Takes the hooks off the optimizer; set by `StepHooks`."""

    @property
    def dense_steps(self) -> int:
        """Optimizer steps before masks are imposed; as good as endless while "step" waits to switch."""
        if self.precondition is None:
            return self.rule.dense_steps
        return sys.maxsize if self.precondition.switched_at is None else self.precondition.switched_at

    @property
    def imposes(self) -> bool:
        """Whether the weights are N:M now, rather than only watched."""
        return self.method != "dense" and self.steps >= self.dense_steps

    @property
    def conforms(self) -> bool:
        """Whether the parameters are N:M now: masks are imposed, and hard."""
        return self.imposes and (self.frozen or self.steps >= self.rule.fading_steps)

    def freeze(self) -> None:
        """Hold the masks; pruned weights are zero from here on."""
        if self.frozen:
            return
        layers = self.layers
        if self.imposes and not self.is_detached:
            self.follow(is_step=False)
            with torch.no_grad():
                harden(layers)
            self.remember(layers)
        self.frozen = True

    def _soften(self, layers: Sequence[SparseLayer]) -> None:
        if self.imposes and not self.frozen:
            soften(layers, self.method, self.rule.pruned_factor(self.steps))

    def _set_structure(self, layers: Sequence[SparseLayer]) -> bool:
        """Give layers the N of this moment; whether it has changed."""
        before = [layer.kept for layer in layers]
        for layer in layers:
            layer.kept = None if self.frozen else self.rule.kept_at(self.steps, layer.pattern)
        return before != [layer.kept for layer in layers]

    def add(self, layers: Iterable[tuple[SparseLayer, nn.Module]], *, split: bool = True) -> None:
        """Take dense weights in, each with the module that owns it; those of a copy are split already."""
        new = []
        for layer, module in layers:
            self._handles[layer] = attach(module, layer, self._loaded)
            new.append(layer)
        self.layers += new
        self._links = None
        if not split:
            self.remember(new)
            return
        self._set_structure(new)
        with torch.no_grad():
            split_all(new, impose=self.imposes, hold=self.rule.hold_masks, count=False)
            self._soften(new)
            for layer in new:
                layer.begin()
        self.remember(new)

    def drop(self, layers: Sequence[SparseLayer], *, restore: bool) -> None:
        """Let layers go, dense again or as they are."""
        if restore and self.imposes:
            with torch.no_grad():
                restore_all(layers)
        for layer in layers:
            self._handles.pop(layer).remove()
        self.layers = [layer for layer in self.layers if layer not in layers]
        self._links = None

    def retire(self) -> None:
        """End, for a later `sparsify` has all layers."""
        self.is_retired = True
        self.end()
        self.detach()

    def copied(self, model: nn.Module) -> MaskedWeights:
        """The same settings and position for a copy of the model; without layers."""
        copied = MaskedWeights(
            model,
            rule=self.rule,
        )
        copied.steps, copied.frozen = self.steps, self.frozen
        copied.precondition = self.precondition.copied() if self.precondition else None
        return copied

    @torch.no_grad()
    def set_position(
        self, steps: int, *, frozen: bool, precondition: Mapping[str, Any] | None, check: Callable[[], None]
    ) -> None:
        """Go to the position of a saved state whose masks and residuals are about to be loaded.

        Args:
            steps: Optimizer steps at that moment.
            frozen: Whether masks were held.
            precondition: `Precondition.state_dict`, where there was one.
            check: Raises ConfigError where the state does not belong to the weights.

        Raises:
            ConfigError: From `check`; the position stays what it was.
        """
        before, imposed = (self.steps, self.frozen), self.imposes
        switch = self.precondition.state_dict() if self.precondition else None
        self.steps, self.frozen = steps, frozen
        if self.precondition and precondition is not None:
            self.precondition.load_state_dict(precondition)
        shapes = [(layer.is_whole, layer.factor, layer.kept) for layer in self.layers]
        self._set_structure(self.layers)
        for layer in self.layers:
            layer.is_whole = self.method == "s-ste" and self.imposes and not frozen
            layer.factor = self.rule.pruned_factor(steps) if self.imposes and not frozen else 0.0
        try:
            if self.imposes:
                check()
        except ConfigError:
            self.steps, self.frozen = before
            if self.precondition and switch is not None:
                self.precondition.load_state_dict(switch)
            for layer, shape in zip(self.layers, shapes, strict=True):
                layer.is_whole, layer.factor, layer.kept = shape
            raise
        if imposed and not self.imposes:
            restore_all(self.layers)
        for layer in self.layers:
            layer.is_open, layer.rewritten, layer.aside = False, None, None

    def detach(self) -> None:
        """Follow the parameters no more."""
        self.is_detached = True
        for handle in self._handles.values():
            handle.remove()
        self._handles = {}

    def remember(self, layers: Sequence[SparseLayer]) -> None:
        """Make what the parameters hold now what the next step expects."""
        take_snapshots([(layer.snapshot, layer.parameter) for layer in layers])

    def follow(self, *, is_step: bool) -> None:
        """Let the layers follow what happened to model and parameters since the last step.

        Raises:
            ConfigError: It cannot be reconciled; names the layers.
        """
        if self.is_open or self.is_detached:
            return
        self.follow_model()
        if not self.imposes:
            return
        wait = not is_step or self.steps % _STEPS_BETWEEN_GPU_CHECKS == 0
        if found := find_writes(self.layers, wait=wait):
            follow_writes(found, loaded=False, is_step=is_step, held=self.frozen, steps=self.steps, soften=self._soften)

    def follow_model(self) -> None:
        """Let the layers follow modules and parameters that were replaced.

        Raises:
            ConfigError: No optimizer steps the new parameter, or there is none; names the layer.
        """
        if self._links is None or not self._links.hold():
            self._links = ModelLinks(self.model, self.layers)
            if self._links.missing:
                missing, self._links = self._links.missing, None
                self.adopt(missing)
                self._links = ModelLinks(self.model, self.layers)

    def _loaded(self, layer: SparseLayer) -> None:
        """After load_state_dict of the module that has this layer."""
        if self.is_open or layer not in self._handles or layer.parameter.is_meta:
            return
        if not self.imposes:
            return
        if layer.snapshot.has_changed(layer.parameter, wait=True):
            follow_writes(
                [classify(layer)], loaded=True, is_step=False, held=self.frozen, steps=self.steps, soften=self._soften
            )

    @torch.no_grad()
    def take(self) -> None:
        """Make W what the parameters hold."""
        if self.imposes:
            for layer in self.layers:
                if classify(layer).write is not Write.SAME:
                    take_weights([layer], begin=self.steps == 0)
                    self._soften([layer])
                layer.rewritten = layer.aside = None
        self.remember(self.layers)

    def open_section(self) -> None:
        """The next opening is for somebody who writes to the weights, so that held masks do not matter."""
        self._dense_section = True

    def open_weights(self) -> None:
        """Before a step: the parameters hold W."""
        if len(self.layers) > 1 and torch._C._current_graph_task_id() != _NO_BACKWARD:  # noqa: SLF001 -- no public name
            raise ConfigError(
                "an optimizer steps within backward(), which still needs the N:M weights of the other layers",
                where=f"layer {self.layers[0].name}",
                hint="call step() after backward()",
            )
        self.follow(is_step=True)
        self.is_open = True
        if not self.imposes or (self.frozen and not self._dense_section):
            return
        try:
            restore_all(self.layers)
        except BaseException:
            self.is_open = False
            opened = [layer for layer in self.layers if layer.is_open]
            split_all(opened, impose=True, hold=True, count=False)
            self._soften(opened)
            raise

    def close_weights(self, *, stepped: bool) -> None:
        """After a step: the parameters hold W~, the residuals the rest."""
        self.is_open = False
        dense_section, self._dense_section = self._dense_section, False
        self.steps += stepped
        if stepped and self.precondition and self.precondition.switched_at is None:
            self.precondition.end_step(self.steps, self.layers, self._stepping)
        self._stepping = []
        begins = stepped and self.steps == self.dense_steps
        restructured = self._set_structure(self.layers)
        if not self.imposes or begins:
            split_all(self.layers, impose=self.imposes, hold=False)
        elif self.frozen:
            self._close_held(dense_section)
        else:
            held = self.steps % self.rule.mask_update_interval != 0 and not restructured
            split_all(self.layers, impose=True, hold=held)
        self._soften(self.layers)
        if self.imposes:
            self.remember(self.layers)
        if stepped:
            for layer in self.layers:
                layer.end_step()

    def _close_held(self, dense_section: bool) -> None:
        if dense_section:
            split_all(self.layers, impose=True, hold=True)
        else:
            zero_pruned(self.layers)

    def alter_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the optimizer's own step: decay * R is added to the gradient, or pruned weights get none."""
        if not self.imposes:
            return
        mine = self._stepped_by(optimizer)
        for layer, _ in mine:
            align_gradient(layer.parameter)
        self._alter(mine, getattr(optimizer, "grad_scale", None))
        if self.precondition:
            self.precondition.hold_variance(optimizer, [layer for layer, _ in mine])

    def _alter(self, mine: Sequence[tuple[SparseLayer, bool]], scale: torch.Tensor | None) -> None:
        if self.frozen:
            for layer, _ in mine:
                layer.mask_gradient()
            return
        # Fused optimizers unscale inside their kernel, so what is added to the gradient has to be scaled too.
        for maximize in (False, True):
            # An optimizer that maximizes negates what it is given.
            decay = self.rule.decay_at(self.steps) * (-1 if maximize else 1)
            alter_gradients([layer for layer, negated in mine if negated is maximize], decay, scale)

    def restore_gradients(self, optimizer: torch.optim.Optimizer, *, stepped: bool) -> None:
        """After it: `.grad` is the task's gradient, and the optimizer's state its own."""
        if self.precondition:
            self.precondition.release_variance(optimizer, stepped=stepped)
            if stepped and self.precondition.switched_at is None:
                self._stepping.append(optimizer)
                self.precondition.observe(optimizer, self.layers)
        scale = getattr(optimizer, "grad_scale", None)
        unscale = None
        if scale is not None:
            found = getattr(optimizer, "found_inf", None)
            unscale = scale.reciprocal()
            if found is not None:
                unscale = torch.where(found.to(unscale.device) > 0, torch.ones_like(unscale), unscale)
        for layer in self.layers:
            layer.restore_gradient(unscale)

    def _stepped_by(self, optimizer: torch.optim.Optimizer) -> list[tuple[SparseLayer, bool]]:
        """The layers of an optimizer, each with whether it is maximized."""
        default = bool(getattr(optimizer, "maximize", False))
        groups = {
            id(parameter): bool(group.get("maximize", default))
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        return [(layer, groups[id(layer.parameter)]) for layer in self.layers if id(layer.parameter) in groups]


def check_owned(layers: Sequence[tuple[str, nn.Parameter]], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Refuse weights that no optimizer steps.

    Raises:
        ConfigError: Names them.
    """
    owned = {
        id(parameter) for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]
    }
    missing = [name for name, parameter in layers if id(parameter) not in owned]
    if missing:
        raise ConfigError(
            f"the optimizer does not own {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}",
            hint="make it from this model's parameters, or exclude these layers",
        )
