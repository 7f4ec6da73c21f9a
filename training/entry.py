"""`sparsify`: make a network N:M sparse in any training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.pattern import NMPattern
from nm2trt.training.arguments import (
    check_axes,
    check_count,
    check_globs,
    check_number,
    check_objects,
    check_pattern,
    check_patterns,
)
from nm2trt.training.live_selection import LiveSelection
from nm2trt.training.masked_weights import MaskedWeights
from nm2trt.training.methods import (
    PAPER_DECAY,
    WITH_DECAY,
    MaskDecay,
    Method,
    MethodRule,
    check_rule,
    choose_method,
    warn_of_adam,
)
from nm2trt.training.selection_rule import SelectionRule
from nm2trt.training.shards import check_master_weights, check_shards
from nm2trt.training.sparsifier import Sparsifier
from nm2trt.training.step_hooks import StepHooks, optimizer_chain


def sparsify(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    pattern: str | NMPattern = "2:4",
    method: Method | None = None,
    *,
    decay: float = PAPER_DECAY,
    layer_patterns: Mapping[str, str | NMPattern] | None = None,
    exclude: Sequence[str] = (),
    axes: Mapping[str, int] | None = None,
    mask_update_interval: int = 1,
    dense_steps: int = 0,
    total_steps: int | None = None,
    decay_warmup: float = 0.0,
    mask_decay: MaskDecay = "linear",
    hold_masks: bool = False,
    example_inputs: Any = None,
) -> Sparsifier:
    """Make a network N:M sparse from now on, in any training loop.

    Layers that an earlier call made sparse are taken over with their dense weights; the earlier sparsifier ends.

    Args:
        model: The network, on its device; compiled, wrapped by DDP or sharded by FSDP2's `fully_shard` is fine.
        optimizer: The optimizer that steps its parameters, or a wrapper that has it as an attribute (accelerate's,
            Lookahead, SAM).
        pattern: N kept of every M consecutive weights along the reduction axis.
        method: "sr-ste"; "ste" (no decay); "asp" (masks of the current magnitudes, held from the start);
            "s-ste" (kept weights are soft-thresholded); "step" (Adam and AdamW: dense until the second moments settle,
            between 10 and 50 % of all steps, then SR-STE with these held); "decaying-mask" (pruned weights fade in 3/4
            of all steps); "dense" (imposes nothing, records the SAD that magnitude masks would have). None takes
            "step" under Adam and AdamW where `total_steps` is given, and says so in a warning, else "sr-ste".
        decay: lambda of SR-STE and of "step" after its switch, 2e-4 in the paper; pruned weights shrink by it.
        layer_patterns: Glob on module names -> pattern of these layers.
        exclude: Globs on module names that stay dense.
        axes: Glob on parameter names -> reduction axis, for weights that no rule knows, such as a mixture's experts in
            one parameter of [E, N, K].
        mask_update_interval: Optimizer steps between new masks; in between, the last one is held.
        dense_steps: Optimizer steps before the first masks are imposed; until then the network trains dense.
        total_steps: Optimizer steps of the whole training, for "step", "decaying-mask" and `decay_warmup`.
        decay_warmup: Share of all steps in which lambda grows from 0 to `decay`.
        mask_decay: Of "decaying-mask". "linear" and "exponential": pruned weights are multiplied with a factor that
            falls from 1. "structured": masks are hard, and N falls in equal times from M - 1 over M / 2, M / 4 and so
            on to the pattern's own.
        hold_masks: Take the masks from the weights as they are, also of another tool's checkpoint, and hold them from
            the first step on. The method is "asp" then.
        example_inputs: A batch (a tensor, a tuple of positional or a dict of keyword arguments) that the network is run
            on once, to see how each weight is used. Without it the first forward pass of training is watched.

    Returns:
        The sparsifier; the model conforms from this moment on (with "dense" never, with `dense_steps` after them,
        with "step" after its switch).

    Raises:
        ConfigError: A wrong argument, a glob without a match, no layer that could be sparse, an optimizer that does
            not own a layer's weight or whose steps cannot be seen; with `hold_masks`, a layer that is not N:M already.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> sparsifier = sparsify(model, optimizer, "2:4", exclude=["2"], example_inputs=torch.zeros(1, 64))
        >>> model(torch.randn(8, 64)).square().mean().backward()
        >>> optimizer.step()
        >>> int((model[0].weight.reshape(-1, 4) != 0).sum(1).max())
        2
    """
    check_objects(model, optimizer)
    total_steps = None if total_steps is None else check_count(total_steps, "total_steps", 1)
    if method is None and hold_masks:
        method = "asp"
    if method is None:
        method = choose_method(optimizer, total_steps)
    settings = check_rule(
        MethodRule(
            method=method,
            decay=check_number(decay, "decay", "2e-4") * (method in WITH_DECAY),
            mask_update_interval=check_count(mask_update_interval, "mask_update_interval", 1),
            dense_steps=check_count(dense_steps, "dense_steps", 0),
            total_steps=total_steps,
            decay_warmup=decay_warmup,
            mask_decay=mask_decay,
            hold_masks=bool(hold_masks),
        )
    )
    rule = SelectionRule(
        check_pattern(pattern, "pattern"), check_patterns(layer_patterns), check_globs(exclude), check_axes(axes)
    )
    check_shards(model)
    check_master_weights(optimizer_chain(optimizer))
    network = _unwrapped(model)
    selected = rule.select(network, example_inputs=example_inputs)
    sparse = [entry for entry in selected if entry.pattern is not None]
    if not sparse:
        reasons = "; ".join(f"{entry.candidate.name}: {entry.reason}" for entry in selected[:5])
        raise ConfigError(f"no layer can be sparse ({reasons or 'the network has none'})", hint="use a smaller M")
    weights = MaskedWeights(network, rule=settings)
    hooks = StepHooks(optimizer, weights)
    selection = LiveSelection(rule, selected, weights, hooks)
    sparsifier = Sparsifier(weights, hooks, selection)
    try:
        selection.take_in(sparse)
    except BaseException:
        sparsifier.remove_hooks()
        raise
    if example_inputs is None and not hasattr(model, "_orig_mod"):
        selection.watch_uses()
    warn_of_adam(method, optimizer)
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
