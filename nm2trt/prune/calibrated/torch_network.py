"""Prune a torch network with data, layer by layer, each on what the layers pruned before it make of the samples.

For every weight the samples run through the network again, up to where the weight is read: one layer's inputs are
summed at a time and no activations are kept, so memory does not grow with the samples or the depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nm2trt.errors import ConfigError, InputError, Nm2trtError
from nm2trt.pattern import NMPattern
from nm2trt.prune.calibrated.gram import InputGram
from nm2trt.prune.calibrated.solve import Method, PrunedColumns, prune_columns
from nm2trt.prune.calibrated.torch_uses import (
    Batches,
    StopForward,
    WatchWeights,
    WeightUse,
    as_in_inference,
    run_batches,
)
from nm2trt.prune.calibrated.unfold import columns_to_weight, iterate_unfolded, weight_to_columns
from nm2trt.selectors import check_globs, last_match

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerResult:
    """What became of one weight, or of one slice of a packed weight. Errors are shares of the dense outputs' energy."""

    name: str
    """Of the parameter."""
    rows: tuple[int, int] | None
    """Outputs of a slice, first and behind the last; None where it is the whole weight."""
    kind: str
    shape: tuple[int, ...]
    """[O, I] or [O, I / groups, k...], as read."""
    pattern: NMPattern | None
    """None: it stays dense."""
    reason: str
    error: float | None = None
    magnitude_error: float | None = None
    held_out_error: float | None = None
    """On samples that chose nothing."""
    input_rows: int = 0
    details: PrunedColumns | None = None
    """Without its arrays."""


Progress = Callable[[LayerResult, int, int], None]
"""Called after each weight with its number, from 1, and how many there are."""


@dataclass(slots=True)
class _Found:
    use: WeightUse
    calls: int
    last: bool


def prune_network(
    model: nn.Module,
    batches: Batches,
    pattern: NMPattern,
    *,
    layer_patterns: Mapping[str, NMPattern] | None = None,
    exclude: Sequence[str] = (),
    method: Method = "obs",
    damping: float = 0.01,
    held_out: Batches | None = None,
    progress: Progress | None = None,
) -> list[LayerResult]:
    """Prune a network in place.

    What runs last is taken for the classifier and stays dense unless a glob names it; so do embeddings and weights
    that are also used as one.

    Args:
        model: Left as it was where an error is raised.
        batches: Samples that choose; see `Batches`.
        pattern: For every weight that no glob names.
        layer_patterns: Glob over parameter names, with or without `.weight` -> pattern; the last match wins.
        exclude: Globs of weights that stay dense.
        method: See `prune_columns`.
        damping: See `prune_columns`.
        held_out: Other samples, to measure the error with.
        progress: See `Progress`.

    Returns:
        A result for every weight that the network reads, in the order of execution, and at last for parameters of
        more than one dimension that no known operator read.

    Raises:
        ConfigError: A glob matches no parameter.
        InputError: There are no samples, the network cannot run on one, inputs are NaN or infinite, or no weight
            can be pruned.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    check_globs([_names_of(name) for name in names], (*(layer_patterns or {}), *exclude), where="--layer, --exclude")
    saved: dict[str, torch.Tensor] = {}
    with as_in_inference(model):
        found = _find_uses(model, batches)
        decided = _decide(model, found, pattern, layer_patterns or {}, exclude)
        total = sum(result.pattern is not None for result in decided)
        if not total:
            reason = f" ({decided[0].name}: {decided[0].reason})" if decided else ""
            raise InputError(
                f"no weight can be pruned to {pattern}{reason}", hint="see its layers with `nm2trt verify`"
            )
        results, done = [], 0
        try:
            for one, result in zip(found, decided, strict=True):
                if result.pattern is not None:
                    saved.setdefault(one.use.name, model.get_parameter(one.use.name).detach().clone())
                    result = _prune(model, one, result, batches, held_out, method, damping)
                    done += 1
                    if progress is not None:
                        progress(result, done, total)
                results.append(result)
        except BaseException:
            for name, values in saved.items():
                model.get_parameter(name).copy_(values)
            raise
    return [*results, *_unread(names, model, results)]


def relative_output_error(dense: nn.Module, pruned: nn.Module, batches: Batches) -> float:
    """Energy of the difference of all floating-point outputs, as a share of the dense outputs' energy.

    Raises:
        InputError: There is no batch, or a network cannot run on one.
    """
    difference = energy = 0.0
    with as_in_inference(dense), as_in_inference(pruned):
        pairs = zip(run_batches(dense, batches, "held-out"), run_batches(pruned, batches, "held-out"), strict=True)
        for before, after in pairs:
            for one, other in zip(output_tensors(before), output_tensors(after), strict=True):
                difference += float((other.double() - one.double()).square().sum())
                energy += float(one.double().square().sum())
    return difference / energy if energy else float(difference > 0)


def output_tensors(output: Any) -> Iterator[torch.Tensor]:
    """The floating-point tensors that a network gives, whatever it packs them in."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from output_tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from output_tensors(value)


def _find_uses(model: nn.Module, batches: Batches) -> list[_Found]:
    """Run the first batch and list what reads which weight, in order."""
    calls: dict[WeightUse, int] = {}

    def count(use: WeightUse, _input: torch.Tensor) -> None:
        calls[use] = calls.get(use, 0) + 1

    for _ in run_batches(model, batches, "samples", WatchWeights(model, count)):
        break
    products = [use for use in calls if use.kind != "embedding"]
    last = products[-1].name if len({use.name for use in products}) > 1 else ""
    return [_Found(use, number, use.name == last) for use, number in calls.items()]


def _names_of(name: str) -> tuple[str, ...]:
    return (name, name.removesuffix(".weight"))


def _decide(
    model: nn.Module,
    found: Sequence[_Found],
    pattern: NMPattern,
    layer_patterns: Mapping[str, NMPattern],
    exclude: Sequence[str],
) -> list[LayerResult]:
    conflicts = _conflicts(model, [one.use for one in found])
    results = []
    for one in found:
        use = one.use
        named = last_match(_names_of(use.name), layer_patterns)
        wanted = layer_patterns[named] if named is not None else pattern
        reason = conflicts.get(use.name, "") or _dense_reason(model, one, wanted, named)
        excluded = last_match(_names_of(use.name), exclude)
        if excluded is not None:
            reason = f"excluded by {excluded!r}"
        whole = model.get_parameter(use.name).numel() == int(np.prod(use.shape))
        first = use.offset // use.strides[0] if use.strides[0] else 0
        results.append(
            LayerResult(
                name=use.name,
                rows=None if whole else (first, first + use.shape[0]),
                kind=use.kind,
                shape=use.shape,
                pattern=None if reason else wanted,
                reason=reason or f"reduction axis of {use.shape[1]} divides by {wanted.m}",
            )
        )
    return results


def _dense_reason(model: nn.Module, one: _Found, wanted: NMPattern, named: str | None) -> str:
    use = one.use
    if use.kind == "embedding":
        return "embedding: rows are looked up, not multiplied"
    if use.kind == "conv-transpose":
        return "transposed convolutions are not pruned with data"
    if model.get_parameter(use.name).dtype not in _FLOATS:
        return f"values of type {model.get_parameter(use.name).dtype} are not pruned"
    size = use.shape[1]
    if size % wanted.m:
        reason = f"reduction axis of {size} is {'shorter than' if size < wanted.m else 'no multiple of'} M = {wanted.m}"
        if named in _names_of(use.name):
            raise ConfigError(reason, where=f"layer {use.name}", hint="choose another pattern, or leave it out")
        return reason
    if named is None and one.last:
        return "it runs last and is taken for the classifier; name it with --layer to prune it"
    if named is None and use.shape[0] == 1:
        return "one output: a sparse kernel has nothing to gain; name it with --layer to prune it"
    return ""


def _conflicts(model: nn.Module, uses: Sequence[WeightUse]) -> dict[str, str]:
    """Weights that are read in several ways that overlap: what suits one reader need not suit the other."""
    found = {}
    for name in {use.name for use in uses}:
        readers = [use for use in uses if use.name == name]
        if len(readers) == 1:
            continue
        if any(use.kind == "embedding" for use in readers):
            found[name] = "shared with an embedding, whose rows are looked up"
            continue
        counts = torch.zeros(model.get_parameter(name).numel(), dtype=torch.int32)
        for use in readers:
            counts.as_strided(use.shape, use.strides, use.offset).add_(1)
        if int(counts.max()) > 1:
            found[name] = "read in several ways that overlap"
    return found


def _prune(
    model: nn.Module,
    one: _Found,
    result: LayerResult,
    batches: Batches,
    held_out: Batches | None,
    method: Method,
    damping: float,
) -> LayerResult:
    assert result.pattern is not None
    use = one.use
    gram = _sum_inputs(model, one, batches, "samples")
    other = _sum_inputs(model, one, held_out, "held-out samples") if held_out is not None else None
    view = use.view(model)
    # A copy: what follows writes into the memory that a linear weight's columns share.
    dense_GOC = weight_to_columns(_to_numpy(view), use.groups).copy()
    try:
        solved = prune_columns(dense_GOC, gram, result.pattern, method=method, damping=damping)
    except Nm2trtError as error:
        raise type(error)(error.what, where=error.where or use.name, hint=error.hint) from None
    view.copy_(_to_torch(columns_to_weight(solved.weights, use.shape)))
    change_GOC = solved.weights.astype(np.float64) - dense_GOC.astype(np.float64)
    held_out_error = None
    if other is not None:
        held_out_error = _share(other.error_of(change_GOC), other.error_of(dense_GOC))
    return replace(
        result,
        error=_share(solved.error, solved.dense_energy),
        magnitude_error=_share(solved.magnitude_error, solved.dense_energy),
        held_out_error=held_out_error,
        input_rows=gram.rows,
        details=replace(solved, weights=np.empty(0), mask=np.empty(0, np.bool_)),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _sum_inputs(model: nn.Module, one: _Found, batches: Batches, what: str) -> InputGram:
    use = one.use
    gram = InputGram(int(np.prod(use.shape[1:])), use.groups)
    left = 0

    def add(seen: WeightUse, x: torch.Tensor) -> None:
        nonlocal left
        if seen != use:
            return
        values = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
        array = values.cpu().numpy()
        if use.kind == "linear":
            gram.add(array[None], use.name)
        else:
            options = {"strides": use.stride, "pads": [*use.padding, *use.padding], "dilations": use.dilation}
            for rows in iterate_unfolded(array, use.shape[2:], groups=use.groups, **options):
                gram.add(rows, use.name)
        left -= 1
        if left == 0:
            raise StopForward

    left = one.calls
    for _ in run_batches(model, batches, what, WatchWeights(model, add)):
        left = one.calls
    return gram


def _to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype == torch.bfloat16:
        return plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(plain.numpy())


def _to_torch(array: NDArray[Any]) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _unread(names: Sequence[str], model: nn.Module, results: Sequence[LayerResult]) -> list[LayerResult]:
    read = {result.name for result in results}
    return [
        LayerResult(
            name=name,
            rows=None,
            kind="other",
            shape=tuple(model.get_parameter(name).shape),
            pattern=None,
            reason="no product or convolution read it in this form",
        )
        for name in names
        if name not in read
    ]
