"""Which layers of a live model are sparse: taken in, replaced by the model's owner, added, released, reported."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern
from nm2trt.selectors import match_any
from nm2trt.training.held_masks import take_masks
from nm2trt.training.layer_state import SparseLayer
from nm2trt.training.masked_weights import MaskedWeights, check_owned
from nm2trt.training.precondition import check_adam
from nm2trt.training.selection import Selected, watched
from nm2trt.training.selection_rule import SelectionRule
from nm2trt.training.step_hooks import StepHooks
from nm2trt.training.takeover import take_over
from nm2trt.training.uses import FirstForward, UseTrace


@dataclass(frozen=True, slots=True)
class LayerReport:
    """Why one weight is sparse or dense."""

    name: str
    module: str
    kind: str
    shape: tuple[int, ...]
    pattern: str | None
    reason: str


class LiveSelection:
    """Applies a rule to a model, now and whenever the model or the rule changes.

    Args:
        rule: What the user said.
        selected: What it gave for the model.
        weights: Where sparse layers live.
        hooks: Whose optimizers have to own them.
    """

    def __init__(self, rule: SelectionRule, selected: list[Selected], weights: MaskedWeights, hooks: StepHooks) -> None:
        self.rule = rule
        self.selected = selected
        self._weights = weights
        self._hooks = hooks
        weights.adopt = self._adopt
        self.misused: dict[str, str] = {}
        """Parameter name -> why an operator does not read its pattern, as the first forward pass showed."""
        self.released: set[str] = set()
        """Modules that `release` has excluded, so that `add` may have them back."""
        self._first_forward: FirstForward | None = None

    def watch_uses(self) -> None:
        """Watch the next eager forward pass of the model for weights that its operators read otherwise."""
        entries = [entry for entry in self.selected if entry.pattern is not None]
        patterns = {entry.candidate.name: entry.pattern for entry in entries if entry.pattern is not None}
        trace = UseTrace(watched([entry.candidate for entry in entries], patterns), masked=self._weights.imposes)
        self._first_forward = FirstForward(self._weights.model, trace, self._uses_seen)

    def stop_watching(self) -> None:
        """Take the hooks of `watch_uses` off."""
        if self._first_forward is not None:
            self._first_forward.remove()

    def _uses_seen(self, trace: UseTrace) -> None:
        self.misused = dict(trace.findings)
        for name, words in self.misused.items():
            warnings.warn(
                f"{name} is not sparse where it is used: {words}; "
                + (
                    f"exclude {module!r}"
                    if (module := name.rpartition(".")[0])
                    else "leave it out of axes, or give another"
                ),
                stacklevel=2,
            )

    def take_in(self, entries: Sequence[Selected]) -> None:
        """Make dense weights sparse.

        Raises:
            ConfigError: The optimizer does not own one.
        """
        candidates = [entry.candidate for entry in entries]
        check_owned([(one.name, one.parameter) for one in candidates], self._hooks.optimizers)
        layers = [
            SparseLayer.of(
                entry.candidate.name,
                entry.candidate.parameter,
                entry.candidate.axis,
                entry.pattern,
                with_residual=self._weights.rule.keeps_residual,
            )
            for entry in entries
            if entry.pattern is not None and entry.candidate.axis is not None
        ]
        if self._weights.precondition is not None:
            check_adam(layers, self._hooks.optimizers)
        if self._weights.rule.hold_masks:
            take_masks(layers)
        for earlier in take_over([(one.module, one.parameter) for one in candidates]):
            earlier.retire()
        self._weights.add(zip(layers, [one.module for one in candidates], strict=True))

    def _adopt(self, missing: Sequence[SparseLayer]) -> None:
        """The model has other parameters in the place of these layers'."""
        selected = self.rule.for_model(self._weights.model).select(self._weights.model)
        entries = {entry.candidate.name: entry for entry in selected}
        for layer in missing:
            if layer.name not in entries:
                raise ConfigError(
                    "its weight is no longer the model's",
                    where=f"layer {layer.name}",
                    hint=f"call sparsifier.release_layers([{module_of(layer)!r}])",
                )
        new = [entries[layer.name] for layer in missing if entries[layer.name].pattern is not None]
        try:
            check_owned([(entry.candidate.name, entry.candidate.parameter) for entry in new], self._hooks.optimizers)
        except ConfigError as error:
            raise ConfigError(
                "its weight is no longer the model's: the model has another parameter there (a new module, or "
                f"load_state_dict(assign=True)), and {error.what}",
                where=f"layer {new[0].candidate.name}",
                hint="give the optimizer the new parameter, or make it anew and call sparsify again",
            ) from None
        self._weights.drop(missing, restore=False)
        self.selected = selected
        self.take_in(new)

    def add(self, named: Mapping[str, NMPattern]) -> list[str]:
        """Make the dense layers sparse that these globs on module names mean; returns the weights' names.

        Raises:
            ConfigError: None can be, or the optimizer does not own one.
        """
        live = {layer.name for layer in self._weights.layers}
        rule = replace(
            self.rule,
            layers={**self.rule.layers, **named},
            exclude=[
                glob
                for glob in self.rule.exclude
                if glob not in named and not (glob in self.released and match_any((glob,), named))
            ],
        )
        selected = rule.for_model(self._weights.model).select(self._weights.model)
        meant = [
            entry
            for entry in selected
            if match_any(entry.candidate.selectable, named) and entry.candidate.name not in live
        ]
        new = [entry for entry in meant if entry.pattern is not None]
        if not new:
            reasons = "; ".join(f"{entry.candidate.name}: {entry.reason}" for entry in meant[:5])
            raise ConfigError(
                f"no layer can become sparse ({reasons or 'none of these names is a dense layer'})",
                where=f"layers {', '.join(map(repr, named))}",
                hint="sparsifier.report() lists the layers",
            )
        self.take_in(new)
        self.rule, self.selected = rule, selected
        return [entry.candidate.name for entry in new]

    def release(self, globs: Sequence[str]) -> list[str]:
        """Make the sparse layers dense again that these globs on module names mean; returns the weights' names.

        Raises:
            ConfigError: None of them is sparse.
        """
        gone = [layer for layer in self._weights.layers if match_any((module_of(layer), layer.name), globs)]
        if not gone:
            raise ConfigError(
                f"no sparse layer matches {', '.join(map(repr, globs))}",
                where="layers",
                hint=f"the sparse layers are {', '.join(module_of(layer) for layer in self._weights.layers[:8])}",
            )
        names = {layer.name for layer in gone}
        self._weights.drop(gone, restore=True)
        modules = {module_of(layer) for layer in gone}
        self.released |= modules
        self.rule = replace(self.rule, exclude=[*self.rule.exclude, *sorted(modules)])
        self.selected = [
            replace(entry, pattern=None, reason="released") if entry.candidate.name in names else entry
            for entry in self.selected
        ]
        return sorted(names)

    def owners(self) -> dict[str, nn.Module]:
        """The module that owns each weight, by parameter name."""
        return {entry.candidate.name: entry.candidate.module for entry in self.selected}

    def report(self) -> list[LayerReport]:
        """Every weight of two or more dimensions: its pattern, or why it stays dense."""
        return [self._report_entry(entry) for entry in self.selected]

    def _report_entry(self, entry: Selected) -> LayerReport:
        reason, pattern = entry.reason, entry.pattern
        if pattern is not None and self._weights.method == "dense":
            reason, pattern = f"recorded as {pattern}, not imposed", None
        elif entry.candidate.name in self.misused:
            reason, pattern = self.misused[entry.candidate.name], None
        elif pattern is not None and self._weights.imposes and not self._weights.conforms:
            reason, pattern = f"pruned weights still fade, {pattern} after that", None
        elif pattern is not None and not self._weights.imposes and self._weights.precondition is not None:
            reason, pattern = f"dense while Adam's second moments settle, then {pattern}", None
        elif pattern is not None and not self._weights.imposes:
            reason, pattern = f"dense for {self._weights.dense_steps} steps, then {pattern}", None
        return LayerReport(
            name=entry.candidate.name,
            module=entry.candidate.module_name,
            kind=entry.candidate.kind,
            shape=tuple(entry.candidate.parameter.shape),
            pattern=None if pattern is None else str(pattern),
            reason=reason,
        )


def module_of(layer: SparseLayer) -> str:
    """The name of the module that owns a layer's weight."""
    return layer.name.rpartition(".")[0]
