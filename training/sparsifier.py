"""SR-STE, STE, ASP and plain dense training as a projection around the optimizer's step.

Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch" (ICLR 2021). The paper keeps
dense weights W and lets the forward pass see E * W. Here the module's parameter *is* W~ = E * W, and what was pruned
waits in a residual R = (1 - E) * W. Their supports are disjoint, so W = W~ + R is exact in floating point:

    step pre-hook    grad += decay * R;  parameter += R
    optimizer.step()
    step post-hook   E = mask(parameter);  R = (1 - E) * parameter;  parameter = E * parameter

The decay term enters once per optimizer step, after unscaling, clipping and all-reduce, so it depends neither on
the loss scale nor on the number of micro-batches or processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern
from nm2trt.training.layer_state import SparseLayer, restore_all, split_all, zero_pruned
from nm2trt.training.sad import LayerSad, Sad
from nm2trt.training.selection import Selected, select_weights, watched
from nm2trt.training.shards import (
    align_gradient,
    as_sharded,
    check_shards,
    count_as_sharded,
    own_count,
    part_of,
    sum_over_shards,
)
from nm2trt.training.uses import FirstForward, UseTrace

Method = Literal["dense", "ste", "sr-ste", "asp"]
METHODS: tuple[str, ...] = get_args(Method)
PAPER_DECAY = 2e-4


@dataclass(frozen=True, slots=True)
class LayerReport:
    """Why one weight is sparse or dense."""

    name: str
    module: str
    kind: str
    shape: tuple[int, ...]
    pattern: str | None
    reason: str


def sparsify(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    pattern: str | NMPattern = "2:4",
    method: Method = "sr-ste",
    *,
    decay: float = PAPER_DECAY,
    layers: Mapping[str, str | NMPattern] | None = None,
    exclude: Sequence[str] = (),
    refresh_every: int = 1,
    example_inputs: Any = None,
) -> Sparsifier:
    """Make a network N:M sparse from now on, in any training loop.

    Args:
        model: The network, on its device; compiled, wrapped by DDP or sharded by FSDP2's `fully_shard` is fine.
        optimizer: The optimizer that steps its parameters; not a wrapper around one.
        pattern: N kept of every M consecutive weights along the reduction axis.
        method: "sr-ste"; "ste" (no decay); "asp" (masks of the current magnitudes, held from the start);
            "dense" (imposes nothing, records the SAD that magnitude masks would have).
        decay: lambda of SR-STE, 2e-4 in the paper; pruned weights shrink by it.
        layers: Glob on module names -> pattern of these layers.
        exclude: Globs on module names that stay dense.
        refresh_every: Optimizer steps between new masks; in between, the last one is held.
        example_inputs: A batch (a tensor, a tuple of positional or a dict of keyword arguments) that the network is run
            on once, to see how each weight is used. Without it the first forward pass of training is watched.

    Returns:
        The sparsifier; the model conforms from this moment on (except with "dense").

    Raises:
        ConfigError: Unknown method, bad pattern, a glob without a match, no layer that could be sparse, an
            optimizer that does not own a layer's weight.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}", where="method", mend=f"choose from {', '.join(METHODS)}")
    if decay < 0:
        raise ConfigError(
            f"decay {decay} is negative and would grow the pruned weights", where="decay", mend="use 2e-4"
        )
    if refresh_every < 1:
        raise ConfigError(f"refresh_every = {refresh_every}", where="refresh_every", mend="use 1 or more")
    wanted = NMPattern.parse(pattern) if isinstance(pattern, str) else pattern
    per_layer = {
        glob: NMPattern.parse(value) if isinstance(value, str) else value for glob, value in (layers or {}).items()
    }
    check_shards(model)
    selected = select_weights(_unwrapped(model), wanted, per_layer, exclude, example_inputs=example_inputs)
    if method in ("ste", "sr-ste") and "adam" in type(optimizer).__name__.lower():
        warnings.warn(
            f"{method} under {type(optimizer).__name__}: STEP (Lu et al., ICML 2023) finds that masks which still move "
            "spoil Adam's second moments; compare with SGD, or freeze() the masks early",
            stacklevel=2,
        )
    sparsifier = Sparsifier(
        optimizer, selected, method=method, decay=decay if method == "sr-ste" else 0.0, refresh_every=refresh_every
    )
    if example_inputs is None and not hasattr(model, "_orig_mod"):
        sparsifier.watch_uses(_unwrapped(model))
    return sparsifier


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module whose names the state dict has: out of torch.compile and DDP."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


class Sparsifier:
    """Keeps the weights of a network N:M around every step of its optimizer. Made by `sparsify`."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        selected: Sequence[Selected],
        *,
        method: Method,
        decay: float,
        refresh_every: int = 1,
    ) -> None:
        self.method = method
        self.decay = decay
        self.refresh_every = refresh_every
        self.steps = 0
        self._selected = selected
        self._frozen = method == "asp"
        self._check(optimizer)
        self._layers = [
            SparseLayer.of(
                entry.candidate.name,
                entry.candidate.parameter,
                entry.candidate.axis,
                entry.pattern,
                with_residual=method in ("ste", "sr-ste"),
            )
            for entry in selected
            if entry.pattern is not None and entry.candidate.axis is not None
        ]
        with torch.no_grad():
            split_all(self._layers, impose=method != "dense", hold=False)
            for layer in self._layers:
                layer.begin()
        self._misused: dict[str, str] = {}
        self._first_forward: FirstForward | None = None
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def _check(self, optimizer: torch.optim.Optimizer) -> None:
        sparse = [entry.candidate for entry in self._selected if entry.pattern is not None]
        if not sparse:
            reasons = "; ".join(f"{entry.candidate.name}: {entry.reason}" for entry in self._selected[:5])
            raise ConfigError(f"no layer can be sparse ({reasons or 'the network has none'})", mend="use a smaller M")
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [candidate.name for candidate in sparse if id(candidate.parameter) not in owned]
        if missing:
            raise ConfigError(
                f"the optimizer does not own {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}",
                mend="make it from this model's parameters, or exclude these layers",
            )

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # torch hands the hook the arguments of the unbound step, so the optimizer itself comes first.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None:
            raise ConfigError(
                f"{type(optimizer).__name__}.step was given a closure, which would see dense weights",
                mend="call backward() first and step() without arguments",
            )
        if self.method == "dense":
            return
        # Fused optimizers unscale inside their kernel, so what is added to the gradient has to be scaled too.
        scale = getattr(optimizer, "grad_scale", None)
        for layer in self._layers:
            align_gradient(layer.parameter)
        if not self._frozen:
            restore_all(self._layers, self.decay, scale)
            return
        for layer in self._layers:
            layer.mask_gradient()

    @torch.no_grad()
    def _after_step(self, *_: object) -> None:
        self.steps += 1
        impose = self.method != "dense"
        if not self._frozen:
            split_all(self._layers, impose=impose, hold=self.steps % self.refresh_every != 0)
        elif impose:
            zero_pruned(self._layers)

    def watch_uses(self, model: nn.Module) -> None:
        """Watch the next eager forward pass of the model for weights that its operators read otherwise."""
        entries = [entry for entry in self._selected if entry.pattern is not None]
        patterns = {entry.candidate.name: entry.pattern for entry in entries if entry.pattern is not None}
        trace = UseTrace(watched([entry.candidate for entry in entries], patterns), masked=self.method != "dense")
        self._first_forward = FirstForward(model, trace, self._uses_seen)

    def _uses_seen(self, trace: UseTrace) -> None:
        self._misused = dict(trace.findings)
        for name, words in self._misused.items():
            warnings.warn(
                f"{name} is not sparse where it is used: {words}; exclude {name.rpartition('.')[0]!r}", stacklevel=2
            )

    def masks(self) -> dict[str, torch.Tensor]:
        """Bool tensor per parameter name, True = kept; a DTensor where the parameter is one."""
        return {layer.name: as_sharded(layer.mask(), layer.parameter) for layer in self._layers}

    def residuals(self) -> dict[str, torch.Tensor]:
        """R per parameter name: the pruned weights' values. Empty for "dense" and "asp".

        A DTensor with the parameter's placements where the parameter is one.
        """
        return {
            layer.name: as_sharded(layer.residual, layer.parameter)
            for layer in self._layers
            if layer.residual is not None
        }

    @torch.no_grad()
    def dense_weights(self) -> dict[str, torch.Tensor]:
        """W = W~ + R per parameter name, copied; a DTensor with the parameter's placements where it is one."""
        return {layer.name: self._dense(layer) for layer in self._layers}

    def _dense(self, layer: SparseLayer) -> torch.Tensor:
        weight = layer.weight().clone()
        if layer.residual is not None:
            weight += layer.residual
        return as_sharded(weight, layer.parameter)

    @torch.no_grad()
    def dense_state_dict(self, model: nn.Module) -> dict[str, Any]:
        """The model's state dict with the dense weights W~ + R in place of the sparse ones.

        Args:
            model: What `sparsify` was given, or a wrapper around it or inside it (torch.compile, DDP, Lightning). Its
                own names are kept; a weight of several names is replaced under each.

        Raises:
            ConfigError: The model does not hold a sparse weight, so it is another one.
        """
        state = dict(model.state_dict(keep_vars=True))
        left = {id(layer.parameter): layer for layer in self._layers}
        dense: dict[int, torch.Tensor] = {}
        for name, value in state.items():
            layer = left.get(id(value))
            if layer is not None:
                state[name] = dense.setdefault(id(value), self._dense(layer))
            elif isinstance(value, torch.Tensor):
                state[name] = value.detach()
        if missing := [layer.name for key, layer in left.items() if key not in dense]:
            raise ConfigError(
                f"this model's state dict does not hold the sparse weight of {', '.join(missing[:3])}",
                mend="give the model that sparsify was given",
            )
        return state

    def patterns(self) -> dict[str, NMPattern]:
        """The pattern that is imposed, per parameter name. Empty for "dense"."""
        if self.method == "dense":
            return {}
        return {layer.name: layer.pattern for layer in self._layers if layer.name not in self._misused}

    def report(self) -> list[LayerReport]:
        """Every weight of two or more dimensions: its pattern, or why it stays dense."""
        return [
            LayerReport(
                name=entry.candidate.name,
                module=entry.candidate.module_name,
                kind=entry.candidate.kind,
                shape=tuple(entry.candidate.parameter.shape),
                pattern=self._reported(entry),
                reason=self._reason(entry),
            )
            for entry in self._selected
        ]

    def _reported(self, entry: Selected) -> str | None:
        imposed = self.method != "dense" and entry.candidate.name not in self._misused
        return str(entry.pattern) if entry.pattern is not None and imposed else None

    def _reason(self, entry: Selected) -> str:
        if entry.pattern is not None and self.method == "dense":
            return f"recorded as {entry.pattern}, not imposed"
        return self._misused.get(entry.candidate.name, entry.reason)

    @torch.no_grad()
    def sad(self) -> Sad:
        """Sparse architecture divergence per layer, and make this moment the new previous record.

        Sharded layers are counted over all their processes, so every one of these must call this.
        """
        layers = []
        for layer in self._layers:
            counts = sum_over_shards(layer.counts(), layer.parameter)
            weights, previous, start, flips = counts.tolist()
            layers.append(LayerSad(layer=layer.name, weights=weights, previous=previous, start=start, flips=flips))
        return Sad(step=self.steps, layers=layers)

    def freeze(self) -> None:
        """Hold the masks from here on: pruned weights get no gradient and stay zero."""
        self._frozen = True

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside the model's and the optimizer's state; tensors are not copied.

        Where parameters are DTensors, so are all tensors here, with the same placements: torch.distributed.checkpoint
        saves and loads them for any number of processes. No collective is called.
        """
        return {
            "method": self.method,
            "steps": self.steps,
            "frozen": self._frozen,
            "layers": {
                layer.name: {
                    "pattern": str(layer.pattern),
                    "residual": None if layer.residual is None else as_sharded(layer.residual, layer.parameter),
                    "bits": as_sharded(layer.bits, layer.parameter),
                    "flips": count_as_sharded(layer.flips, layer.parameter),
                }
                for layer in self._layers
            },
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave; load the model's own state dict first.

        Tensors may be DTensors of any placements, or whole, as `torch.distributed.checkpoint.state_dict` gathers them.

        Raises:
            ConfigError: The state is of another method, other layers or other patterns.
        """
        mine = {layer.name: str(layer.pattern) for layer in self._layers}
        theirs = {name: entry["pattern"] for name, entry in state["layers"].items()}
        if state["method"] != self.method or mine != theirs:
            different = sorted(set(mine.items()) ^ set(theirs.items()))[:2]
            raise ConfigError(
                f"the saved state is of {state['method']!r}, this run of {self.method!r}"
                if state["method"] != self.method
                else f"the saved state has other sparse layers: {different}",
                mend="resume with the configuration that the run was started with",
            )
        self.steps, self._frozen = int(state["steps"]), bool(state["frozen"])
        for layer in self._layers:
            saved = state["layers"][layer.name]
            layer.bits.copy_(part_of(saved["bits"], layer.parameter))
            layer.flips.copy_(own_count(saved["flips"], layer.parameter))
            if layer.residual is not None:
                layer.residual.copy_(part_of(saved["residual"], layer.parameter))

    def remove(self) -> None:
        """Take the hooks off; the model keeps its N:M weights."""
        if self._first_forward is not None:
            self._first_forward.remove()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
