"""Prune an ONNX network with data, layer by layer, each on what the already pruned network gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.prune.calibrated.activations import FRONTIER_BYTES, ActivationStream, Feeds
from nm2trt.prune.calibrated.gram import InputGram
from nm2trt.prune.calibrated.onnx_graph import RunnableGraph
from nm2trt.prune.calibrated.onnx_layers import LayerInput, PrunableTensor
from nm2trt.prune.calibrated.onnx_norms import ChannelMoments, NormNode, find_norms, new_statistics
from nm2trt.prune.calibrated.solve import Method, PrunedColumns, prune_columns, score_columns
from nm2trt.prune.magnitude import check_finite

Array = NDArray[Any]
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, of how many)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneMethod:
    """How weights are chosen and changed."""

    method: Method = "obs"
    damping: float = 0.01
    """Share of the Hessian's mean diagonal that is added to its diagonal."""
    recalibrate_norms: bool = False
    """Take mean and variance of BatchNormalization nodes behind pruned layers anew."""


@dataclass(slots=True, kw_only=True)
class PrunedNetwork:
    """What pruning found; the graph that it was given holds the new weights."""

    weights: dict[str, Array] = field(default_factory=dict)
    """First name of a tensor -> its new values, as they are stored."""
    outcomes: dict[str, PrunedColumns] = field(default_factory=dict)
    """The same names -> errors; their arrays are dropped."""
    statistics: dict[str, Array] = field(default_factory=dict)
    """Initializers of BatchNormalization nodes -> new values."""
    norms: int = 0
    norms_shared: int = 0
    norms_total: int = 0
    samples: int = 0


@dataclass(slots=True)
class _Step:
    """Layers with the same inputs, or one normalization."""

    node: int
    tensors: list[PrunableTensor] = field(default_factory=list)
    norm: NormNode | None = None

    @property
    def names(self) -> list[str]:
        if self.norm is not None:
            return [self.norm.data]
        return list(dict.fromkeys(one.data for tensor in self.tensors for one in tensor.inputs))


def prune_network(
    graph: RunnableGraph,
    tensors: Sequence[PrunableTensor],
    feeds: Feeds,
    how: PruneMethod,
    *,
    progress: Progress = lambda *_: None,
    frontier_bytes: int = FRONTIER_BYTES,
) -> PrunedNetwork:
    """Prune the tensors in the graph's order, and put their new values into the graph.

    One Gram matrix and one batch are in memory at a time, beside the weights and the kept activations.

    Args:
        graph: Dense; changed in place.
        tensors: Of `find_prunable`.
        feeds: The calibration samples.
        how: Method and damping.
        progress: Told of every layer.
        frontier_bytes: Bound on the activations that are kept between layers.

    Raises:
        InputError: There is no sample, a weight or an activation is NaN or infinite, or ONNX Runtime refuses the model
            or a batch.
    """
    result = PrunedNetwork()
    steps = _layer_steps(tensors)
    if how.recalibrate_norms:
        pruned = {one.node for tensor in tensors for one in tensor.inputs}
        norms, result.norms_shared, result.norms_total = find_norms(graph, pruned)
        result.norms = len(norms)
        steps = sorted([*steps, *(_Step(norm.node, norm=norm) for norm in norms)], key=lambda step: step.node)
    stream = ActivationStream(graph, feeds, frontier_bytes=frontier_bytes)
    for number, step in enumerate(steps):
        left = list(dict.fromkeys(name for later in steps[number:] for name in later.names))
        progress(_words(step), number, len(steps))
        if step.norm is not None:
            _renew_norm(graph, stream, step.norm, left, result)
        else:
            _prune_step(graph, stream, step, left, how, result)
    progress("pruned", len(steps), len(steps))
    result.samples = stream.samples
    return result


def score_network(
    graph: RunnableGraph,
    tensors: Sequence[PrunableTensor],
    feeds: Feeds,
    how: PruneMethod,
    *,
    progress: Progress = lambda *_: None,
    frontier_bytes: int = FRONTIER_BYTES,
) -> dict[str, Array]:
    """Score the weights of the dense network as the method does; nothing is changed.

    Memory, arguments and errors are those of `prune_network`.

    Returns:
        Every name of a tensor -> scores in the stored shape, float64, of sum 1, so that every tensor counts alike.
    """
    steps = _layer_steps(tensors)
    found: dict[str, Array] = {}
    stream = ActivationStream(graph, feeds, frontier_bytes=frontier_bytes)
    for number, step in enumerate(steps):
        left = list(dict.fromkeys(name for later in steps[number:] for name in later.names))
        progress(f"scoring {step.tensors[0].names[0]}", number, len(steps))
        gram = _sum_inputs(stream, step, left)
        for tensor in step.tensors:
            stored, layer = tensor.weight.read(), tensor.inputs[0]
            check_finite(stored, tensor.names[0], graph.path)
            scores = score_columns(layer.columns(stored), gram, method=how.method, damping=how.damping)
            positions = layer.columns(np.arange(stored.size, dtype=np.intp).reshape(stored.shape))
            as_stored = np.empty(stored.shape)
            as_stored.reshape(-1)[positions] = scores / (scores.sum() or 1.0)
            found |= dict.fromkeys(tensor.names, as_stored)
    return found


def _layer_steps(tensors: Sequence[PrunableTensor]) -> list[_Step]:
    """Layers that read the same rows, as query, key and value do, are one step; none of them depends on another."""
    steps: dict[object, _Step] = {}
    for tensor in tensors:
        key = tuple(one.signature for one in tensor.inputs)
        step = steps.setdefault(key, _Step(tensor.first_node))
        step.node = min(step.node, tensor.first_node)
        step.tensors.append(tensor)
    return sorted(steps.values(), key=lambda step: step.node)


def _words(step: _Step) -> str:
    return f"statistics before node {step.node}" if step.norm else f"pruning {step.tensors[0].names[0]}"


def _prune_step(
    graph: RunnableGraph,
    stream: ActivationStream,
    step: _Step,
    left: Sequence[str],
    how: PruneMethod,
    result: PrunedNetwork,
) -> None:
    gram = _sum_inputs(stream, step, left)
    for tensor in step.tensors:
        name = tensor.names[0]
        stored = tensor.weight.read()
        check_finite(stored, name, graph.path)
        outcome = _pruned(tensor, tensor.inputs[0], stored, gram, how)
        positions = tensor.inputs[0].columns(np.arange(stored.size, dtype=np.intp).reshape(stored.shape))
        new = stored.copy()
        new.reshape(-1)[positions] = outcome.weights
        # What is zero stays as it is, also -0.0.
        new[(new == 0) & (stored == 0)] = stored[(new == 0) & (stored == 0)]
        for alias in tensor.names:
            graph.replace(alias, new)
        result.weights[name] = new
        result.outcomes[name] = _without_arrays(outcome)


def _sum_inputs(stream: ActivationStream, step: _Step, left: Sequence[str]) -> InputGram:
    first = step.tensors[0]
    shape = first.inputs[0].columns(first.weight.read()).shape
    gram = InputGram(shape[2], shape[0])
    for found, _ in stream.visit(step.node, step.names, left):
        for one in first.inputs:
            for x_GRC in one.rows(found[one.data]):
                gram.add(x_GRC, where=first.names[0])
    return gram


def _pruned(
    tensor: PrunableTensor, layer: LayerInput, stored: Array, gram: InputGram, how: PruneMethod
) -> PrunedColumns:
    try:
        return prune_columns(layer.columns(stored), gram, tensor.pattern, method=how.method, damping=how.damping)
    except InputError as error:
        raise InputError(error.what, where=error.where or f"layer {tensor.names[0]}", hint=error.hint) from None


def _without_arrays(outcome: PrunedColumns) -> PrunedColumns:
    empty = np.zeros((0, 0, 0))
    return replace(outcome, weights=empty, mask=empty.astype(np.bool_))


def _renew_norm(
    graph: RunnableGraph, stream: ActivationStream, norm: NormNode, left: Sequence[str], result: PrunedNetwork
) -> None:
    moments = ChannelMoments()
    for found, _ in stream.visit(norm.node, [norm.data], left):
        moments.add(found[norm.data])
    for name, values in new_statistics(graph, norm, moments).items():
        graph.replace(name, values)
        result.statistics[name] = values
