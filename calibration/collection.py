"""Runs samples through the float graph and gathers statistics of the tensors that will be quantized, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from nm2trt.calibration.graph import Graph
from nm2trt.calibration.placement import Placement
from nm2trt.calibration.ranges import LEVELS, Method
from nm2trt.calibration.sessions import Feed, Runner, with_outputs
from nm2trt.calibration.statistics import TensorStatistics
from nm2trt.errors import InputError

Progress = Callable[[int], None]
"""Called with the number of samples done."""


def collect(
    graph: Graph, tensors: Iterable[str], feeds: Iterable[tuple[Feed, int]], progress: Progress = lambda _: None
) -> dict[str, TensorStatistics]:
    """Gather statistics. Memory depends on the batch and not on the number of batches.

    Args:
        graph: The float graph.
        tensors: Names of inputs or intermediate tensors.
        feeds: Batches with their number of samples, one in memory at a time.
        progress: Told of every batch.

    Raises:
        InputError: An activation is NaN or infinite, a tensor is constant, or there is no batch.
    """
    names = list(tensors)
    fed = {port.name for port in graph.ports}
    computed = [name for name in names if name not in fed]
    runner = Runner(with_outputs(graph, computed), graph.path) if computed else None
    found = {name: TensorStatistics() for name in names}
    done = 0
    for feed, count in feeds:
        arrays = dict(zip(computed, runner.run(feed), strict=True)) if runner is not None else {}
        for name in names:
            if not found[name].add(feed[name] if name in fed else arrays[name]):
                raise InputError(
                    f"activation {name!r} is NaN or infinite for a sample between {done} and {done + count - 1}",
                    where=graph.path,
                    hint="look at that sample and at the weights before it",
                )
        done += count
        progress(done)
    if not done:
        raise InputError("there is no sample to calibrate with", where="--data")
    for name, statistics in found.items():
        if statistics.constant:
            raise InputError(
                f"activation {name!r} is {statistics.smallest:g} in all of {done} samples, so it has no range",
                where=graph.path,
                hint="give other samples, or leave the layer that reads it out with --exclude",
            )
    return found


def ranges_of(statistics: Mapping[str, TensorStatistics], method: Method) -> dict[str, float]:
    """Choose the range of every tensor: the largest magnitude that INT8 will reach."""
    return {
        name: method.range_of(stats.counts, stats.span / len(stats.counts), stats.magnitude)
        for name, stats in statistics.items()
    }


def scales_of(ranges: Mapping[str, float], placement: Placement) -> dict[str, float]:
    """Turn ranges into scales; tensors that share a scale get the largest of theirs."""
    widened = dict(ranges)
    for group in placement.one_scale:
        largest = max(ranges[name] for name in group)
        widened |= dict.fromkeys(group, largest)
    return {name: value / LEVELS for name, value in widened.items()}
