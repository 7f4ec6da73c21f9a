"""Which weights of a network become sparse, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A weight of two or more dimensions that some module owns."""

    name: str
    """Parameter name, as in the state dict."""
    module_name: str
    module: nn.Module
    parameter: nn.Parameter
    axis: int | None
    """Reduction axis; None where N:M groups have no meaning."""
    kind: str
    why_not: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """A candidate with the pattern that it gets, or the reason that it stays dense."""

    candidate: Candidate
    pattern: NMPattern | None
    reason: str


def select_weights(
    model: nn.Module,
    pattern: NMPattern,
    layers: Mapping[str, NMPattern],
    exclude: Sequence[str],
) -> list[Selected]:
    """Decide for every weight of two or more dimensions, in the order of the model's modules.

    Args:
        model: The network.
        pattern: For every layer that `layers` does not name.
        layers: Glob on module names -> pattern; the last match wins. Naming a layer also takes it out of the
            default exclusion of the classifier.
        exclude: Globs on module names that stay dense; beats `layers`.

    Raises:
        ConfigError: A glob matches no layer, or names a layer whose reduction axis its M does not divide.
    """
    candidates = list(_candidates(model))
    _check_globs([*layers, *exclude], [candidate.module_name for candidate in candidates])
    classifier = _classifier(model)
    return [_decide(candidate, pattern, layers, exclude, classifier) for candidate in candidates]


def _decide(
    candidate: Candidate,
    pattern: NMPattern,
    layers: Mapping[str, NMPattern],
    exclude: Sequence[str],
    classifier: nn.Module | None,
) -> Selected:
    def dense(reason: str) -> Selected:
        return Selected(candidate=candidate, pattern=None, reason=reason)

    named = next((glob for glob in reversed(list(layers)) if _matches(candidate.module_name, glob)), None)
    excluded = next((glob for glob in exclude if _matches(candidate.module_name, glob)), None)
    if excluded is not None:
        return dense(f"excluded by {excluded!r}")
    if candidate.axis is None:
        return dense(candidate.why_not)
    wanted = layers[named] if named is not None else pattern
    size = candidate.parameter.shape[candidate.axis]
    # A glob such as "*" must not fail at the stem; only an exact name insists.
    insists = named == candidate.module_name
    if size % wanted.m:
        reason = (
            f"reduction axis of {size} is shorter than M = {wanted.m}"
            if size < wanted.m
            else f"reduction axis of {size} is no multiple of M = {wanted.m}"
        )
        if insists:
            raise ConfigError(reason, where=f"layer {candidate.module_name}", mend="choose another pattern for it")
        return dense(reason)
    if candidate.why_not:
        return dense(candidate.why_not)
    if candidate.module is classifier and named is None:
        return dense("the classifier stays dense unless it is named")
    return Selected(candidate=candidate, pattern=wanted, reason=f"reduction axis of {size} divides by {wanted.m}")


def _candidates(model: nn.Module) -> Iterator[Candidate]:
    owned = [
        (f"{module_name}.{local}" if module_name else local, module_name, module, local, parameter)
        for module_name, module in model.named_modules()
        for local, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 2
    ]
    uses: dict[int, list[tuple[str, int | None]]] = {}
    for name, _, module, local, parameter in owned:
        uses.setdefault(id(parameter), []).append((name, _role(module, local, parameter)[0]))
    for name, module_name, module, local, parameter in owned:
        axis, kind, why_not = _role(module, local, parameter)
        (first, _), *others = shared = uses[id(parameter)]
        if others and any(other != axis for _, other in shared):
            # Groups along one use's reduction axis mean nothing to the other.
            partner = next(other for other, _ in shared if other != name)
            axis, why_not = None, why_not or f"shares its weight with {partner}, which reads it otherwise"
        elif name != first:
            axis, why_not = None, f"is the weight of {first}"
        yield Candidate(
            name=name,
            module_name=module_name,
            module=module,
            parameter=parameter,
            axis=axis,
            kind=kind,
            why_not=why_not,
        )


def _role(module: nn.Module, local: str, parameter: torch.Tensor) -> tuple[int | None, str, str]:
    """Return (reduction axis, kind, reason against) of one parameter."""
    kind = type(module).__name__
    if isinstance(module, nn.Linear) and local == "weight":
        return 1, kind, ""
    if isinstance(module, _TRANSPOSED):
        return None, kind, "transposed convolutions never run sparse in TensorRT"
    if isinstance(module, _CONVOLUTIONS) and local == "weight":
        if module.groups > 1 and parameter.shape[1] == 1:
            return None, kind, "depthwise: one input channel per group"
        return 1, kind, ""
    if isinstance(module, nn.MultiheadAttention) and local in {
        "in_proj_weight",
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
    }:
        return 1, kind, ""
    # Hugging Face's Conv1D is a Linear that stores its weight as [K, N].
    if kind == "Conv1D" and local == "weight" and type(module).__module__.startswith("transformers."):
        return 0, kind, ""
    return None, kind, f"{kind}.{local} is no matrix product with a reduction axis"


def _classifier(model: nn.Module) -> nn.Module | None:
    """Return the last module with weights of its own, if it is a Linear: by convention it makes the logits."""
    weighted = [module for module in model.modules() if any(p.dim() >= 2 for p in module.parameters(recurse=False))]
    return weighted[-1] if len(weighted) > 1 and isinstance(weighted[-1], nn.Linear) else None


def _matches(name: str, glob: str) -> bool:
    # A name always means itself, also one with brackets.
    return name == glob or fnmatchcase(name, glob)


def _check_globs(globs: Sequence[str], names: Sequence[str]) -> None:
    unmatched = [glob for glob in globs if not any(_matches(name, glob) for name in names)]
    if unmatched:
        raise ConfigError(
            f"no layer matches {', '.join(map(repr, unmatched))}",
            where="layers",
            mend=f"the layers are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
        )
