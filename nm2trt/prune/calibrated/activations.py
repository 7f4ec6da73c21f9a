"""The calibration samples on their way through the network, as far as it is pruned, batch by batch.

What is known of every batch moves forward with the layers: once a layer is pruned, nothing before it runs again. A
frontier that would take more memory than its bound is not kept; the piece from the last kept one then runs for each
layer, until a narrower place of the network comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from nm2trt.errors import InputError
from nm2trt.prune.calibrated.onnx_graph import Feed, PieceSession, RunnableGraph

FRONTIER_BYTES = 1 << 30
"""Memory for the activations that are kept of all samples together."""

Feeds = Callable[[], Iterable[tuple[Feed, int]]]
"""Gives all batches of samples anew at every call, each with its number of samples."""


class ActivationStream:
    """Activations of all calibration samples at one place of the graph after another.

    Args:
        graph: Its weights may be replaced between calls; `visit` sees them as they are then.
        feeds: The samples.
        frontier_bytes: Bound on what is kept.
    """

    def __init__(self, graph: RunnableGraph, feeds: Feeds, *, frontier_bytes: int = FRONTIER_BYTES) -> None:
        self._graph, self._feeds = graph, feeds
        self._most = frontier_bytes
        self._kept: list[tuple[Feed, int]] | None = None
        self.samples = 0
        """Of the last pass."""

    def visit(self, at: int, names: Sequence[str], left: Sequence[str]) -> Iterator[tuple[Feed, int]]:
        """Give tensors batch by batch; consume it to the end.

        Args:
            at: Index of the node that comes next in the graph's order.
            names: Tensors to give.
            left: Targets that are still to be visited after this, these included.

        Raises:
            InputError: There is no sample, a tensor is NaN or infinite, or ONNX Runtime refuses something.
        """
        ahead = self._graph.frontier(at, left)
        moved: list[tuple[Feed, int]] | None = []
        session: PieceSession | None = None
        bytes_kept = done = 0
        for known, count in self._feeds() if self._kept is None else self._kept:
            if session is None:
                session = self._graph.session(known, list(dict.fromkeys((*names, *ahead))))
                found = {**known, **session.run(known)}
                expected = sum(found[name].nbytes for name in ahead) * max(self.samples, count) / max(count, 1)
                if expected > self._most:
                    moved, session = None, self._graph.session(known, list(names))
            else:
                found = {**known, **session.run(known)}
            _check_finite({name: found[name] for name in names}, done, count)
            if moved is not None:
                moved.append(({name: found[name] for name in ahead}, count))
                bytes_kept += sum(found[name].nbytes for name in ahead)
                moved = moved if bytes_kept <= self._most else None
            yield {name: found[name] for name in names}, count
            done += count
        if not done:
            raise InputError(
                "there is no sample to prune with, or fewer than the network's fixed batch", where="--data"
            )
        self.samples = done
        if moved is not None:
            self._kept = moved


def _check_finite(found: Feed, done: int, count: int) -> None:
    for name, array in found.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(
                f"activation {name!r} is NaN or infinite for a sample between {done} and {done + count - 1}",
                where="--data",
                hint="look at that sample and at the weights before it",
            )
