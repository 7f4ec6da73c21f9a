"""SR-STE, STE, ASP and plain dense training as a projection around the optimizer's step.

Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch" (ICLR 2021). The paper keeps
dense weights W and lets the forward pass see E * W. Here the module's parameter *is* W~ = E * W, and what was pruned
waits in a residual R = (1 - E) * W. Their supports are disjoint, so W = W~ + R is exact in floating point:

    before the step   the optimizer is given grad + decay * R;  parameter += R
    optimizer.step()
    after it          E = mask(parameter);  R = (1 - E) * parameter;  parameter = E * parameter

The decay term enters once per optimizer step, after unscaling, clipping and all-reduce, so it depends neither on
the loss scale nor on the number of micro-batches or processes. What else may touch weights, gradients and hooks:
docs/weights.md.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern
from nm2trt.training.arguments import check_globs, check_patterns
from nm2trt.training.dense_state import dense_state_dict, dense_weight
from nm2trt.training.layer_state import SparseLayer
from nm2trt.training.live_selection import LayerReport, LiveSelection
from nm2trt.training.masked_weights import MaskedWeights
from nm2trt.training.sad import LayerSad, Sad
from nm2trt.training.saved_layers import check_parts, check_saved, own_parts
from nm2trt.training.shards import as_sharded, count_as_sharded, sum_over_shards
from nm2trt.training.step_hooks import StepHooks


class Sparsifier:
    """Keeps the weights of a network N:M around every step of its optimizer. Made by `sparsify`."""

    def __init__(self, weights: MaskedWeights, hooks: StepHooks, selection: LiveSelection) -> None:
        self._weights = weights
        self._hooks = hooks
        self._selection = selection

    @property
    def method(self) -> str:
        """One of `METHODS`."""
        return self._weights.method

    @property
    def steps(self) -> int:
        """Optimizer steps that were seen."""
        return self._weights.steps

    @property
    def decay(self) -> float:
        """lambda; 0 for methods without it."""
        return self._weights.rule.decay

    @property
    def mask_update_interval(self) -> int:
        """Optimizer steps between new masks."""
        return self._weights.rule.mask_update_interval

    @property
    def _layers(self) -> list[SparseLayer]:
        """The layers, after they have followed whatever happened to the parameters."""
        self._check_in_use()
        self._weights.follow(is_step=False)
        return self._weights.layers

    def _check_in_use(self) -> None:
        if self._weights.is_retired:
            raise ConfigError(
                "a later call of sparsify has taken these layers over", hint="use the sparsifier that it returned"
            )

    def masks(self) -> dict[str, torch.Tensor]:
        """Bool tensor per parameter name, True = kept; a DTensor where the parameter is one."""
        return {layer.name: as_sharded(layer.mask(), layer.parameter) for layer in self._layers}

    def residuals(self) -> dict[str, torch.Tensor]:
        """R per parameter name: the pruned weights' values, with "s-ste" all of W. Empty for "dense" and "asp".

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
        return {layer.name: dense_weight(layer) for layer in self._layers}

    def dense_state_dict(self, model: nn.Module) -> dict[str, Any]:
        """The model's state dict with the dense weights W~ + R in place of the sparse ones.

        Args:
            model: What `sparsify` was given, or a wrapper around it or inside it (torch.compile, DDP, Lightning). Its
                own names are kept; a weight of several names is replaced under each.

        Raises:
            ConfigError: The model does not hold a sparse weight, so it is another one.
        """
        return dense_state_dict(model, self._layers)

    def patterns(self) -> dict[str, NMPattern]:
        """The pattern that is imposed, per parameter name. Empty for "dense", and while `dense_steps` last."""
        return {name: pattern for name, (pattern, _) in self.imposed().items()}

    def imposed(self) -> dict[str, tuple[NMPattern, int]]:
        """(pattern, reduction axis) per parameter name of what `patterns` gives."""
        layers = self._layers
        misused = self._selection.misused
        if not self._weights.conforms:
            return {}
        return {layer.name: (layer.pattern, layer.axis) for layer in layers if layer.name not in misused}

    def report(self) -> list[LayerReport]:
        """Every weight of two or more dimensions: its pattern, or why it stays dense."""
        self._layers  # noqa: B018 -- lets the layers follow, or raises
        return self._selection.report()

    @torch.no_grad()
    def record_sad(self) -> Sad:
        """Sparse architecture divergence per layer, and make this moment the new previous record.

        Sharded layers are counted over all their processes, so every one of these must call this.
        """
        layers = []
        for layer in self._layers:
            counts = sum_over_shards(layer.counts(), layer.parameter)
            weights, previous, start, flips = counts.tolist()
            layers.append(LayerSad(layer=layer.name, weights=weights, previous=previous, start=start, flips=flips))
        return Sad(step=self.steps, layers=layers)

    def freeze_masks(self) -> None:
        """Hold the masks from here on: pruned weights get no gradient and stay zero.

        With "dense", which imposes no masks, the record goes on.
        """
        self._weights.freeze()

    def unfreeze_masks(self) -> None:
        """Let the masks move again, and pruned weights grow from the values that `freeze_masks` left them with.

        Raises:
            ConfigError: The method is "asp", which keeps no such values.
        """
        if self.method == "asp":
            raise ConfigError("asp holds its masks from the start", where="method", hint='use method="ste"')
        if self.method == "s-ste":
            raise ConfigError("s-ste has given up its dense weights", where="method", hint='use method="sr-ste"')
        self._weights.frozen = False

    @contextmanager
    def dense_parameters(self) -> Iterator[None]:
        """The model's parameters hold W inside, so that whatever is written to them acts on W; N:M again after it.

        For clamping, decay by hand, averages with other weights (Lookahead), or reading W in place.

        Raises:
            ConfigError: Weights were written before in a way that cannot be reconciled.
        """
        if not self._weights.is_open:
            self._layers  # noqa: B018 -- lets the layers follow, or raises
            self._weights.open_section()
        with self._hooks.opened():
            yield

    def take_weights(self) -> None:
        """Make W what the parameters hold now; what was pruned before is gone."""
        self._weights.take()

    def add_layers(self, layers: Mapping[str, str | NMPattern] | Sequence[str]) -> list[str]:
        """Make more layers sparse from now on.

        Args:
            layers: Globs on module names, with a pattern each or with the pattern of `sparsify`.

        Returns:
            The names of the weights that became sparse.

        Raises:
            ConfigError: None can be, or the optimizer does not own one.
        """
        named = check_patterns(
            layers
            if isinstance(layers, Mapping)
            else dict.fromkeys(check_globs(layers, "layers"), self._selection.rule.pattern),
            where="layers",
        )
        self._layers  # noqa: B018 -- lets the layers follow, or raises
        return self._selection.add(named)

    def release_layers(self, layers: Sequence[str]) -> list[str]:
        """Let layers train dense from now on, from their dense weights W~ + R.

        Args:
            layers: Globs on module names.

        Returns:
            The names of the weights that became dense.

        Raises:
            ConfigError: None of them is sparse.
        """
        return self._selection.release(check_globs(layers, "layers"))

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside the model's and the optimizer's state; tensors are not copied.

        Where parameters are DTensors, so are all tensors here, with the same placements: torch.distributed.checkpoint
        saves and loads them for any number of processes. No collective is called.
        """
        layers = self._layers
        return {
            "method": self.method,
            "steps": self.steps,
            "frozen": self._weights.frozen,
            **({} if self._weights.precondition is None else {"precondition": self._weights.precondition.state_dict()}),
            "layers": {
                layer.name: {
                    "pattern": str(layer.pattern),
                    "residual": None if layer.residual is None else as_sharded(layer.residual, layer.parameter),
                    "bits": as_sharded(layer.bits, layer.parameter),
                    "flips": count_as_sharded(layer.flips, layer.parameter),
                    **({} if layer.beta is None else {"beta": layer.beta}),
                    **({} if layer.variance_steps is None else {"variance_steps": layer.variance_steps}),
                }
                for layer in layers
            },
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave; load the model's own state dict first.

        Tensors may be DTensors of any placements, or whole, as `torch.distributed.checkpoint.state_dict` gathers them.

        Raises:
            ConfigError: The state is of another method, other layers or other patterns, or of a moment when the model
                had other weights.
        """
        self._check_in_use()
        self._weights.follow_model()
        # Not what was written to the parameters: the state says what they are to hold.
        layers = self._weights.layers
        check_saved(state, self.method, layers)
        parts = [(layer, own_parts(state["layers"][layer.name], layer)) for layer in layers]
        self._weights.set_position(
            int(state["steps"]),
            frozen=bool(state["frozen"]),
            precondition=state.get("precondition"),
            check=lambda: check_parts(parts),
        )
        for layer, saved in parts:
            layer.bits.copy_(saved["bits"])
            layer.flips.copy_(saved["flips"])
            entry = state["layers"][layer.name]
            beta = entry.get("beta")
            layer.beta = None if beta is None else beta.to(layer.bits.device)
            layer.variance_steps = entry.get("variance_steps")
            if layer.residual is not None:
                layer.residual.copy_(saved["residual"])
        self._weights.remember(layers)

    def remove_hooks(self) -> None:
        """Take the hooks off; the model keeps its N:M weights."""
        self._selection.stop_watching()
        self._hooks.remove()
        self._weights.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> Sparsifier:
        """A sparsifier of the copied model and optimizer: copy the three in one `copy.deepcopy((...))`."""
        optimizer = self._hooks.given()
        if optimizer is None:
            raise ConfigError(
                "its optimizer is gone, so the sparsifier cannot be copied", hint="call sparsify on a copy of the model"
            )
        layers, owners = self._layers, self._selection.owners()
        weights = self._weights.copied(copy.deepcopy(self._weights.model, memo))
        hooks = StepHooks(copy.deepcopy(optimizer, memo), weights)
        selection = LiveSelection(
            *copy.deepcopy((self._selection.rule, self._selection.selected), memo), weights, hooks
        )
        selection.released = set(self._selection.released)
        weights.add([(layer.copied(memo), copy.deepcopy(owners[layer.name], memo)) for layer in layers], split=False)
        copied = Sparsifier(weights, hooks, selection)
        if self._weights.is_detached:
            copied.remove_hooks()
        return copied

    def __reduce__(self) -> Any:
        raise ConfigError(
            "a sparsifier cannot be pickled, since it acts on a live optimizer",
            hint="save sparsifier.state_dict(), and copy.deepcopy((model, optimizer, sparsifier)) for a copy",
        )
