"""Weights that were written between two steps, and the one rule by which the residual follows them.

| what the parameter holds | what it means |
|---|---|
| the same values, or the same but for rounding | nothing happened (swapped away and back, moved, cast) |
| other kept values, while masks are held | W was changed: nothing else trains then |
| kept values all times one factor, pruned ones zero | W was scaled: the residual is scaled, too |
| dense or N:M values; kept values that no alteration explains | new weights; refused again and again |
| anything else | refused: how it would have changed the pruned values is not known |

`load_state_dict` is seen where it happens, and always gives new weights.
"""

from __future__ import annotations

import enum
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from nm2trt.errors import ConfigError
from nm2trt.training.layer_state import Aside, SparseLayer, split_all, zero_pruned
from nm2trt.training.snapshot import take_snapshots

_DENSE_FROM = 0.9
"""Share of pruned places with a value from which on weights are dense: trained ones have few zeros."""

_ALTERED_FROM = 0.1
"""Share of values that stayed, or were scaled like their neighbors, from which on weights were altered in place."""

_ALIKE_FROM = 0.5
"""Cosine similarity of kept values from which on new weights were made of those before."""

_ROUNDINGS = 64
_SCALE_ROUNDINGS = 4


class Write(enum.Enum):
    """What a parameter holds that is not what the last step left."""

    SAME = enum.auto()
    SCALED = enum.auto()
    DENSE = enum.auto()
    SPARSE = enum.auto()
    REPLACED = enum.auto()
    """Kept weights have other values, of the same mask."""
    UNEVEN = enum.auto()
    """Kept weights were altered one by one or row by row: clamped, shrunk, rounded, scaled."""
    RETURNED = enum.auto()
    """What the last step left is back, after other weights were loaded."""
    MIXED = enum.auto()
    """Some pruned weights have values."""


@dataclass(frozen=True, slots=True)
class Found:
    """A layer that was written to."""

    layer: SparseLayer
    write: Write
    factor: float = 1.0
    """Of SCALED."""
    values: torch.Tensor | None = None
    """Some of the values that were written."""
    is_derived: bool = False
    """Whether these resemble the values before, as an average with them does."""


def find_writes(layers: Sequence[SparseLayer], *, wait: bool) -> list[Found]:
    """Classify the weights that changed since their snapshots.

    Args:
        layers: The layers.
        wait: Compare values on a GPU, too.

    Raises:
        ConfigError: A parameter has another shape, or no values (meta device).
    """
    changed = [layer for layer in layers if layer.snapshot.has_changed(layer.parameter, wait=wait)]
    return [classify(layer) for layer in changed]


@torch.no_grad()
def classify(layer: SparseLayer) -> Found:
    """Compare a weight with its mask and with what is remembered of it.

    Raises:
        ConfigError: The parameter has another shape, or no values (meta device).
    """
    shape = tuple(getattr(layer.parameter, "_local_tensor", layer.parameter).shape)
    if layer.parameter.is_meta or shape != tuple(layer.bits.shape):
        raise ConfigError(
            "is on the meta device, without values"
            if layer.parameter.is_meta
            else f"has the shape {list(shape)} now, {list(layer.bits.shape)} when it was made sparse",
            where=f"layer {layer.name}",
            hint="call sparsify again on the model as it is now",
        )
    samples = layer.snapshot.values(layer.parameter)
    weight = layer.weight()
    if not weight.numel():
        return Found(layer, Write.SAME)
    if layer.aside is not None and _is_back(layer.aside, layer.parameter, weight):
        return Found(layer, Write.RETURNED)
    if layer.factor and (_is_faded(layer, weight) if samples is None else _equal(*samples)):
        return Found(layer, Write.SAME)
    stray = (weight != 0) & ~layer.mask()
    strays = int(stray.count_nonzero())
    if samples is not None and not strays:
        if _equal(*samples):
            return Found(layer, Write.SAME)
        factor = _common_factor(*samples)
        if factor is not None:
            return Found(layer, Write.SCALED, factor)
    rounding = _ROUNDINGS * torch.finfo(weight.dtype).eps * float(weight.abs().max())
    if samples is None:
        is_same = not strays
    else:
        is_same = float((weight * stray).abs().max()) <= rounding and _are_close(*samples, rounding)
    if is_same:
        return Found(layer, Write.SAME)
    values = None if samples is None else samples[1].clone()
    if not strays:
        is_other = samples is not None and not _is_alteration(*samples)
        return Found(layer, Write.REPLACED if is_other else Write.UNEVEN, values=values)
    pattern = layer.current_pattern
    groups = (weight != 0).movedim(layer.axis, -1).reshape(-1, pattern.m).sum(1)
    if int(groups.max()) <= pattern.n:
        return Found(layer, Write.SPARSE, values=values)
    pruned = weight.numel() * (1 - pattern.density)
    write = Write.DENSE if strays >= _DENSE_FROM * pruned else Write.MIXED
    return Found(layer, write, values=values, is_derived=samples is not None and _are_alike(*samples))


def _is_faded(layer: SparseLayer, weight: torch.Tensor) -> bool:
    """Whether pruned weights are what a decaying mask left them as; where memory changed, nothing else can be told."""
    if layer.residual is None:
        return False
    apart = (weight - layer.residual * layer.factor).masked_fill(layer.mask(), 0).abs().max()
    return float(apart) <= _ROUNDINGS * torch.finfo(weight.dtype).eps * float(weight.abs().max())


def _is_back(aside: Aside, parameter: torch.Tensor, weight: torch.Tensor) -> bool:
    samples = aside.snapshot.values(parameter)
    if samples is None or not _equal(*samples):
        return False
    pruned = (aside.bits.to(weight.device) & 1) == 0
    return not bool(((weight != 0) & pruned).any())


def _equal(then: torch.Tensor, now: torch.Tensor) -> bool:
    return bool(((then == now) | (then.isnan() & now.isnan())).all())


def _are_close(then: torch.Tensor, now: torch.Tensor, tolerance: float) -> bool:
    return bool(((then - now).abs() <= tolerance).all())


def _are_alike(then: torch.Tensor, now: torch.Tensor) -> bool:
    used = then != 0
    return float(torch.cosine_similarity(then[used].double(), now[used].double(), dim=0)) > _ALIKE_FROM


def _common_factor(then: torch.Tensor, now: torch.Tensor) -> float | None:
    """The factor by which all values were multiplied; None where there is no such factor."""
    used = then != 0
    if bool(now[~used].any()) or not bool(used.any()):
        return None
    ratios = now[used].double() / then[used].double()
    factor = float(ratios.mean())
    tolerance = _SCALE_ROUNDINGS * torch.finfo(now.dtype).eps * abs(factor)
    return factor if bool(((ratios - factor).abs() <= tolerance).all()) else None


def _is_alteration(then: torch.Tensor, now: torch.Tensor) -> bool:
    """Whether values were altered where they are, rather than replaced by others.

    Replaced ones nearly all differ, by factors that differ between neighbors, and in another order of magnitudes.
    """
    used = then != 0
    before, after = then[used].double().abs(), now[used].double().abs()
    if float((before == after).double().mean()) > _ALTERED_FROM:
        return True
    factors = after / before
    tolerance = _SCALE_ROUNDINGS * torch.finfo(now.dtype).eps * factors[1:]
    if float((factors.diff().abs() <= tolerance).double().mean()) > _ALTERED_FROM:
        return True
    return bool((after[before.argsort()].diff() >= 0).all())


@torch.no_grad()
def follow_writes(
    found: Sequence[Found],
    *,
    loaded: bool,
    is_step: bool,
    held: bool,
    steps: int,
    soften: Callable[[Sequence[SparseLayer]], None],
) -> None:
    """Let the residuals follow what was written.

    Args:
        found: From `find_writes`.
        loaded: By `load_state_dict`.
        is_step: A step begins; otherwise somebody reads the sparsifier.
        held: The masks are held, so that what the parameters hold is all that trains.
        steps: Steps seen so far. Before the first one, new weights also begin the record of masks anew.
        soften: Makes of a split what the method has the parameter hold.

    Raises:
        ConfigError: What was written cannot be reconciled; names the layers.
    """
    new = {Write.DENSE, Write.SPARSE} | ({Write.SCALED, Write.REPLACED, Write.UNEVEN, Write.MIXED} if loaded else set())
    if not loaded:
        if any(entry.write in new or (entry.write is Write.REPLACED and not held) for entry in found):
            # What is replaced elsewhere is replaced here, too, though no mask has moved here.
            new |= {Write.REPLACED, Write.UNEVEN}
        _refuse(found, new, is_step=is_step, held=held, steps=steps)
    for entry in found:
        if entry.write is Write.RETURNED:
            entry.layer.take_back()
    same = [entry.layer for entry in found if entry.write is Write.SAME]
    zero_pruned([layer for layer in same if not layer.factor])
    for entry in found:
        if entry.write is Write.SCALED and not loaded and entry.layer.residual is not None:
            entry.layer.weight()
            entry.layer.residual.mul_(entry.factor)
    taken = [entry.layer for entry in found if entry.write in new]
    take_weights(taken, begin=steps == 0)
    soften(taken)
    take_snapshots([(entry.layer.snapshot, entry.layer.parameter) for entry in found])
    for entry in found:
        if entry.write in new:
            entry.layer.rewritten = None if loaded else (steps, entry.values)
    if taken and not loaded:
        warnings.warn(
            f"the weights of {_names(taken)} were replaced outside of the optimizer's step, after step {steps}: they "
            "are the dense weights now, and the pruned values from before are gone; load_state_dict or "
            "sparsifier.dense_parameters() say so",
            stacklevel=2,
        )


def take_weights(layers: Sequence[SparseLayer], *, begin: bool) -> None:
    """Make W what the parameters hold, with new masks; `begin` starts the record of masks anew."""
    for layer in layers:
        layer.set_aside()
        if begin:
            # Before the first step there is nothing to go back to that is worth its memory.
            layer.aside = layer.beta = None
    split_all(layers, impose=True, hold=False, count=False)
    if begin:
        for layer in layers:
            layer.begin()


def _names(layers: Sequence[SparseLayer]) -> str:
    return ", ".join(layer.name for layer in layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")


def _refuse(found: Sequence[Found], new: Collection[Write], *, is_step: bool, held: bool, steps: int) -> None:
    taken = [entry.layer for entry in found if entry.write in new]
    inside = (
        "do it inside `with sparsifier.dense_parameters():`, by which it acts on the dense weights, or call "
        "sparsifier.take_weights() to go on from what the parameters hold (load_state_dict does so by itself)"
    )
    for write, words in (
        (Write.UNEVEN, "kept weights were changed outside of the optimizer's step, the pruned values were not"),
        (Write.MIXED, "some pruned weights were given values outside of the optimizer's step"),
    ):
        layers = [entry.layer for entry in found if entry.write is write]
        if layers and write not in new and not (held and write is Write.UNEVEN):
            raise ConfigError(words, where=f"layer {_names(layers)}", hint=inside)
    if not taken:
        return
    where = f"layer {_names(taken)}"
    dense = [entry.layer for entry in found if entry.write is Write.DENSE]
    if not is_step and any(layer.has_new_gradient() for layer in dense):
        raise ConfigError(
            "the weights were changed with gradients at hand, but no step of the optimizer was seen, so they are not "
            "kept N:M",
            where=where,
            hint="give sparsify the optimizer whose step() updates them, or call sparsifier.take_weights()",
        )
    if any(_is_second(entry, steps) for entry in found if entry.layer in taken):
        raise ConfigError(
            "the weights are replaced outside of the optimizer's step again and again, which leaves nothing of what "
            "was pruned",
            where=where,
            hint=inside,
        )
    if steps == 0 and torch.distributed.is_available() and torch.distributed.is_initialized() and _processes() > 1:
        raise ConfigError(
            "this process's weights were replaced outside of the optimizer's step, as DistributedDataParallel does "
            "when it is made; the other processes would go on with other pruned values",
            where=where,
            hint="wrap the model first and call sparsify then, or load_state_dict in every process",
        )


def _is_second(entry: Found, steps: int) -> bool:
    """Whether this is more than a checkpoint restored or weights drawn anew.

    Other new weights came after the step before, or these are dense and made of those that the steps had left.
    """
    if entry.layer.rewritten is None:
        return False
    at, values = entry.layer.rewritten
    is_same = (
        values is not None
        and entry.values is not None
        and values.shape == entry.values.shape
        and _equal(values.to(entry.values.device, entry.values.dtype), entry.values)
    )
    if is_same or at == steps:
        return False
    return at == steps - 1 or (entry.write is Write.DENSE and entry.is_derived)


def _processes() -> int:
    return torch.distributed.get_world_size()
