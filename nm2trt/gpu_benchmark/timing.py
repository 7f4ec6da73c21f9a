"""Times of GPU calls: CUDA graphs of many launches, in rounds of shuffled order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
Call = Callable[[], object]

_REPLAY_US = 400.0
"""Length of one timed replay: long against a clock's step, short against the budget."""
_MOST_LAUNCHES = 64
MIN_ROUNDS = 30
MAX_ROUNDS = 200


class Timer(Protocol):
    """Whatever times a batch of launches; tests put a fake here."""

    description: str

    def prepare(self, calls: Sequence[Call], launches: int) -> Callable[[], float]:
        """Return a function that runs `launches` launches, taken from `calls` in turn, and returns microseconds."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """Microseconds of one launch, variant by variant, paired by round."""

    us_by_variant: Mapping[str, Times]
    """Variant -> one entry for each round."""
    launches: int

    @property
    def rounds(self) -> int:
        """Rounds measured."""
        return len(next(iter(self.us_by_variant.values())))


def time_variants(
    variants: Mapping[str, Sequence[Call]],
    timer: Timer,
    *,
    budget_s: float,
    seed: int,
    clock: Callable[[], float],
) -> Rounds:
    """Time variants against each other.

    Args:
        variants: Name -> the same product on several sets of operands.
        timer: How launches are timed.
        budget_s: Seconds for the rounds; at least `MIN_ROUNDS` are made.
        seed: Of the order within rounds.
        clock: Seconds.
    """
    trial_us = max(timer.prepare(calls, len(calls))() / len(calls) for calls in variants.values())
    sets = max(len(calls) for calls in variants.values())
    launches = int(np.clip(_REPLAY_US / max(trial_us, 0.1), 1, _MOST_LAUNCHES))
    launches = max(sets, launches // sets * sets)
    replays = {name: timer.prepare(calls, launches) for name, calls in variants.items()}
    for replay in replays.values():
        replay()
        replay()
    names = list(replays)
    found: dict[str, list[float]] = {name: [] for name in names}
    rng = np.random.default_rng(seed)
    started = clock()
    while True:
        for index in rng.permutation(len(names)):
            found[names[index]].append(replays[names[index]]() / launches)
        done = len(found[names[0]])
        if done >= MAX_ROUNDS or (done >= MIN_ROUNDS and clock() - started >= budget_s):
            break
    return Rounds({name: np.array(values) for name, values in found.items()}, launches)


class GraphTimer:
    """Launches captured in a CUDA graph, timed by events around its replay."""

    description = "CUDA graph of up to 64 launches over several sets of operands, timed by CUDA events"

    def prepare(self, calls: Sequence[Call], launches: int) -> Callable[[], float]:
        """Capture the launches."""
        import torch

        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for number in range(launches):
                calls[number % len(calls)]()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

        def replay() -> float:
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) * 1000

        return replay
