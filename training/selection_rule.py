"""What a user has said about which weights are to be sparse, to be applied again when the model changes.

Some reduction axes only the user knows, such as those of a mixture's experts in one [E, N, K] parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern
from nm2trt.selectors import check_globs, last_match, match_any
from nm2trt.training.selection import Selected, select_weights


@dataclass(slots=True)
class SelectionRule:
    """The selecting arguments of `sparsify`."""

    pattern: NMPattern
    layers: dict[str, NMPattern] = field(default_factory=dict)
    exclude: list[str] = field(default_factory=list)
    axes: dict[str, int] = field(default_factory=dict)

    def select(self, model: nn.Module, *, example_inputs: Any = None) -> list[Selected]:
        """Decide for every weight of two or more dimensions; `example_inputs` as for `select_weights`.

        Raises:
            ConfigError: A name matches nothing, or a pattern does not fit.
        """
        selected = select_weights(model, self.pattern, self.layers, self.exclude, example_inputs=example_inputs)
        if not self.axes:
            return selected
        return select_by_axis(selected, self.axes, self.pattern, self.layers, self.exclude)

    def for_model(self, model: nn.Module) -> SelectionRule:
        """The rule without the names that this model does not have any more."""
        parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        layers = [*(name for name, _ in model.named_modules()), *parameters]

        def found(glob: str, names: list[str]) -> bool:
            return match_any(names, (glob,))

        return SelectionRule(
            self.pattern,
            {glob: pattern for glob, pattern in self.layers.items() if found(glob, layers)},
            [glob for glob in self.exclude if found(glob, layers)],
            {glob: axis for glob, axis in self.axes.items() if found(glob, parameters)},
        )


def select_by_axis(
    selected: Sequence[Selected],
    axes: Mapping[str, int],
    pattern: NMPattern,
    layers: Mapping[str, NMPattern],
    exclude: Sequence[str],
) -> list[Selected]:
    """Add the weights that `axes` names to a selection.

    Args:
        selected: From `select_weights`.
        axes: Glob on parameter names -> reduction axis; may be negative.
        pattern: For those that `layers` does not name.
        layers: Glob on module names -> pattern.
        exclude: Globs on module names that stay dense.

    Raises:
        ConfigError: A glob matches no parameter, there is no such axis, or M does not divide it.
    """
    check_globs([(entry.candidate.name,) for entry in selected], axes, where="axes", kind="parameter")
    decided = []
    for entry in selected:
        glob = last_match((entry.candidate.name,), axes)
        names = entry.candidate.selectable
        if glob is None or match_any(names, exclude):
            decided.append(entry)
            continue
        named = last_match(names, layers)
        decided.append(_decide(entry, axes[glob], pattern if named is None else layers[named]))
    return decided


def _decide(entry: Selected, axis: int, pattern: NMPattern) -> Selected:
    shape, where = entry.candidate.parameter.shape, f"layer {entry.candidate.name}"
    if not -len(shape) <= axis < len(shape):
        raise ConfigError(f"axis {axis} of a weight of shape {list(shape)}", where=where, hint="axes count from 0")
    axis %= len(shape)
    if shape[axis] % pattern.m:
        raise ConfigError(
            f"reduction axis of {shape[axis]} is no multiple of M = {pattern.m}",
            where=where,
            hint="choose another pattern or axis for it",
        )
    return Selected(
        candidate=replace(entry.candidate, axis=axis, why_not=""),
        pattern=pattern,
        reason=f"reduction axis {axis}, as given, of {shape[axis]} divides by {pattern.m}",
    )
