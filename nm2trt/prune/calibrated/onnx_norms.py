"""BatchNormalization nodes of an ONNX graph, whose mean and variance are taken anew once layers before them changed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.prune.calibrated.onnx_graph import RunnableGraph

Array = NDArray[Any]
Float64Array = NDArray[np.float64]

_MEAN, _VARIANCE = 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NormNode:
    """One BatchNormalization behind a pruned layer."""

    node: int
    data: str
    mean: str
    """Initializers."""
    variance: str


class ChannelMoments:
    """Mean and variance of every channel over all samples, in float64 (Chan, Golub and LeVeque 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean_C: Float64Array = np.zeros(0)
        self._squares_C: Float64Array = np.zeros(0)

    def add(self, x_NCS: Array) -> None:
        """Take a batch [N, C, ...] into account."""
        x_CR = np.moveaxis(x_NCS, 1, 0).reshape(x_NCS.shape[1], -1).astype(np.float64)
        if not x_CR.shape[1]:
            return
        count, mean_C = x_CR.shape[1], x_CR.mean(axis=1)
        squares_C = np.square(x_CR - mean_C[:, None]).sum(axis=1)
        if not self.count:
            self.count, self.mean_C, self._squares_C = count, mean_C, squares_C
            return
        total, step_C = self.count + count, mean_C - self.mean_C
        self._squares_C = self._squares_C + squares_C + np.square(step_C) * self.count * count / total
        self.mean_C = self.mean_C + step_C * count / total
        self.count = total

    @property
    def variance(self) -> Float64Array:
        """Of the population, as a normalization in training takes it."""
        return self._squares_C / max(self.count, 1)


def find_norms(graph: RunnableGraph, pruned: Collection[int]) -> tuple[list[NormNode], int, int]:
    """Find BatchNormalization nodes that a pruned layer reaches.

    Args:
        graph: The network.
        pruned: Indices of the pruned nodes.

    Returns:
        Those whose statistics can be written; how many reach them but cannot, since others read their statistics or
        they are computed; and how many there are in the whole graph.
    """
    reached, every, shared = set(pruned), 0, 0
    made = {name for index in pruned for name in graph.nodes[index].output}
    found = []
    for index, node in enumerate(graph.nodes):
        if index not in reached and not made.isdisjoint(node.input):
            made.update(name for name in node.output if name)
            reached.add(index)
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        every += 1
        if index not in reached:
            continue
        mean, variance = node.input[_MEAN], node.input[_VARIANCE]
        own = mean != variance and all(
            graph.is_weight(name) and graph.readers(name) == [index] for name in (mean, variance)
        )
        if own:
            found.append(NormNode(node=index, data=node.input[0], mean=mean, variance=variance))
        else:
            shared += 1
    return found, shared, every


def new_statistics(graph: RunnableGraph, norm: NormNode, moments: ChannelMoments) -> dict[str, Array]:
    """The statistics in the types of those that they replace; a channel that never varies keeps its variance.

    Raises:
        InputError: A value does not fit the type.
    """
    old = graph.weight(norm.variance)
    variance_C = np.where(moments.variance > 0, moments.variance, old.astype(np.float64))
    found = {}
    for name, values in ((norm.mean, moments.mean_C), (norm.variance, variance_C)):
        with np.errstate(over="ignore"):
            found[name] = values.astype(graph.weight(name).dtype)
        if not np.isfinite(found[name]).all():
            raise InputError(
                f"the new batch statistics {name!r} do not fit {found[name].dtype}",
                where=graph.path,
                hint="leave out --recalibrate-bn, or prune the float32 network",
            )
    return found
