"""Which weights of a network become sparse, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern
from nm2trt.selectors import check_globs, last_match, match_any, selectable_names
from nm2trt.training.flow import output_linears, owns_weights
from nm2trt.training.uses import UseTrace, Watched, computed_weight, trace_example

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OLD_STYLE = {
    "g": "weight_norm",
    "v": "weight_norm",
    "orig": "torch.nn.utils.prune or spectral_norm",
}
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


_HEAD_NAMES = {"head", "fc", "classifier", "lm_head", "logits", "to_logits"}
"""What libraries call the Linear that makes the logits."""
_HEAD_DEPTH = 1
"""Dots in such a name; deeper ones belong to a block."""


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

    @property
    def selectable(self) -> tuple[str, ...]:
        """What a glob may match: the module, the parameter."""
        return selectable_names(self.module_name, self.name)


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
    *,
    example_inputs: Any = None,
) -> list[Selected]:
    """Decide for every weight of two or more dimensions, in the order of the model's modules.

    Args:
        model: The network.
        pattern: For every layer that `layers` does not name.
        layers: Glob on module names -> pattern; the last match wins. Naming a layer also takes it out of the
            default exclusion of the classifier.
        exclude: Globs on module names that stay dense; beats `layers`.
        example_inputs: What the network is run on once to see how each weight is used: a tensor, a tuple of positional
            or a dict of keyword arguments. Without it, forward passes of modules are tried one by one.

    Raises:
        ConfigError: A glob matches no layer, or names a layer whose reduction axis its M does not divide.
    """
    candidates = list(_candidates(model))
    check_globs([candidate.selectable for candidate in candidates], [*layers, *exclude], where="layers")
    trace = None
    if example_inputs is not None:
        trace = trace_example(model, example_inputs, watched(candidates, {}, pattern))
        candidates = _with_uses(trace, candidates)
    classifiers = _classifiers(model, trace)
    return [_decide(candidate, pattern, layers, exclude, classifiers) for candidate in candidates]


def _with_uses(trace: UseTrace, candidates: list[Candidate]) -> list[Candidate]:
    """Take the weights out that the forward pass reads otherwise than along their reduction axis."""
    found = trace.findings
    return [
        replace(candidate, axis=None, why_not=found[candidate.name]) if candidate.name in found else candidate
        for candidate in candidates
    ]


def watched(
    candidates: Sequence[Candidate], patterns: Mapping[str, NMPattern], usual: NMPattern | None = None
) -> list[Watched]:
    """The candidates that have a reduction axis and a pattern, for `UseTrace`."""
    return [
        Watched(
            name=candidate.name,
            module=candidate.module,
            local=candidate.name.rpartition(".")[2],
            axis=candidate.axis,
            pattern=found,
        )
        for candidate in candidates
        if candidate.axis is not None and (found := patterns.get(candidate.name, usual)) is not None
    ]


def _decide(
    candidate: Candidate,
    pattern: NMPattern,
    layers: Mapping[str, NMPattern],
    exclude: Sequence[str],
    classifiers: Mapping[int, str],
) -> Selected:
    def dense(reason: str) -> Selected:
        return Selected(candidate=candidate, pattern=None, reason=reason)

    named = last_match(candidate.selectable, layers)
    excluded = next((glob for glob in exclude if match_any(candidate.selectable, (glob,))), None)
    if excluded is not None:
        return dense(f"excluded by {excluded!r}")
    if candidate.axis is None:
        return dense(candidate.why_not)
    wanted = layers[named] if named is not None else pattern
    size = candidate.parameter.shape[candidate.axis]
    # A glob such as "*" must not fail at the stem; only an exact name insists.
    insists = named in candidate.selectable
    if size % wanted.m:
        reason = (
            f"reduction axis of {size} is shorter than M = {wanted.m}"
            if size < wanted.m
            else f"reduction axis of {size} is no multiple of M = {wanted.m}"
        )
        if insists:
            raise ConfigError(reason, where=f"layer {candidate.module_name}", hint="choose another pattern for it")
        return dense(reason)
    if candidate.why_not:
        return dense(candidate.why_not)
    if named is None and (words := classifiers.get(id(candidate.module))):
        return dense(words)
    return Selected(candidate=candidate, pattern=wanted, reason=f"reduction axis of {size} divides by {wanted.m}")


def _candidates(model: nn.Module) -> Iterator[Candidate]:
    owned = [
        (f"{module_name}.{local}" if module_name else local, module_name, module, local, parameter)
        for module_name, module in model.named_modules()
        for local, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 2
    ]
    roles = [_role(module, local, parameter) for _, _, module, local, parameter in owned]
    uses: dict[int, list[tuple[str, int | None]]] = {}
    for (name, _, _, _, parameter), (axis, _, _) in zip(owned, roles, strict=True):
        uses.setdefault(id(parameter), []).append((name, axis))
    for (name, module_name, module, _, parameter), (axis, kind, why_not) in zip(owned, roles, strict=True):
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
    if isinstance(module, ParametrizationList):
        return None, kind, f"{_names(module)} computes the layer's weight from it, so its zeros are not what is read"
    if (computed := _OLD_STYLE.get(local.rpartition("_")[2])) and hasattr(module, local.rpartition("_")[0]):
        return None, kind, f"{computed} computes {local.rpartition('_')[0]} from it, so its zeros are not what is read"
    if isinstance(module, nn.Linear) and local == "weight":
        return 1, kind, computed_weight(module, local) or ""
    if isinstance(module, _TRANSPOSED):
        return None, kind, "transposed convolutions never run sparse in TensorRT"
    if isinstance(module, _CONVOLUTIONS) and local == "weight":
        if module.groups > 1 and parameter.shape[1] == 1:
            return None, kind, "depthwise: one input channel per group"
        return 1, kind, computed_weight(module, local) or ""
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
    return None, kind, _why_no_axis(module, kind, local, parameter)


def _names(module: nn.Module) -> str:
    """What a parametrized weight is computed by."""
    return (
        ", ".join(dict.fromkeys(type(part).__name__.lstrip("_") for part in module.children())) or "a parametrization"
    )


def _why_no_axis(module: nn.Module, kind: str, local: str, parameter: torch.Tensor) -> str:
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return f"{kind} multiplies by it at every step inside one fused operator; recurrent weights stay dense"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return f"{kind}.{local} is a table to look up, no matrix product"
    if isinstance(module, nn.Bilinear):
        return "Bilinear multiplies by two inputs at once, so it has no single reduction axis"
    if isinstance(module, nn.MultiheadAttention):
        return f"{kind}.{local} is added to keys or values, no matrix product"
    if parameter.numel() == max(parameter.shape):
        return f"{kind}.{local} is a vector, no matrix"
    if not type(module).__module__.startswith("torch.nn."):
        shape = "x".join(map(str, parameter.shape))
        return f"{kind} uses {local} ({shape}) in a forward of its own, which does not tell a reduction axis"
    return f"{kind}.{local} is no matrix product with a reduction axis"


def _classifiers(model: nn.Module, trace: UseTrace | None) -> dict[int, str]:
    """Linears that make the network's outputs, by the identity of the module: why they stay dense."""
    weighted = [module for module in model.modules() if owns_weights(module)]
    if len(weighted) < 2:
        return {}
    used = output_linears(model)
    if used is None:
        return _assumed_classifier(model, weighted, trace)
    modules = dict(model.named_modules())
    words = "the classifier stays dense unless it is named"
    several = "a classifier, one of several outputs, stays dense unless it is named"
    return {id(modules[name]): words if len(used) == 1 else several for name in used}


def _assumed_classifier(model: nn.Module, weighted: Sequence[nn.Module], trace: UseTrace | None) -> dict[int, str]:
    """Of a network whose forward pass cannot be traced symbolically, the Linear that probably makes the output."""
    modules = dict(model.named_modules())
    if trace is not None and trace.read:
        last, why = modules[list(trace.read)[-1].rpartition(".")[0]], "read last in the example's forward pass"
    else:
        linears = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
        named = [name for name in linears if name.count(".") <= _HEAD_DEPTH and name.rpartition(".")[2] in _HEAD_NAMES]
        last = modules[min(reversed(named), key=lambda name: name.count("."))] if named else weighted[-1]
        why = "by its name" if named else "the last Linear defined"
    if not isinstance(last, nn.Linear):
        return {}
    return {id(last): f"the classifier stays dense unless it is named ({why}; the forward pass cannot be traced)"}
