"""Products measured in a process of their own: a kernel that crashes takes its whole CUDA context with it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from nm2trt.gpu_benchmark.config import BenchmarkConfig, Point
from nm2trt.gpu_benchmark.gpu_schema import PointRecord
from nm2trt.gpu_benchmark.measure import FailedVariantError, Way, measure_point
from nm2trt.library_errors import one_line

_ANSWER_S = 120.0
"""Longer than any product takes; a kernel that hangs is given up."""
_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Failure:
    """What a product's way of being computed did to its process."""

    way: Way | None
    """None where it was not a 2:4 product."""
    reason: str


def serve(connection: Connection, config: BenchmarkConfig, budget_s: float, l2_bytes: float) -> None:
    """Measure products until None comes, or until one fails."""
    from nm2trt.gpu_benchmark.timing import GraphTimer

    timer = GraphTimer()
    while True:
        task = connection.recv()
        if task is None:
            return
        point, ways = task
        try:
            record = measure_point(point, ways, config, timer, budget_s=budget_s, l2_bytes=l2_bytes)
        except FailedVariantError as error:
            connection.send(Failure(error.way, str(error)))
            return
        except RuntimeError as error:
            connection.send(Failure(None, one_line(error, whole=True)))
            return
        connection.send(record)


class Worker:
    """Starts the process, and starts it anew after a crash.

    Args:
        config: As `measure_point` takes it.
        budget_s: Seconds for the rounds of one product.
        l2_bytes: Size of the L2 cache.
        serve: What runs in the process.
    """

    def __init__(
        self, config: BenchmarkConfig, *, budget_s: float, l2_bytes: float, serve: Callable[..., None] = serve
    ) -> None:
        self._arguments = (config, budget_s, l2_bytes)
        self._serve = serve
        self._process: Any = None
        self._connection: Connection | None = None

    def measure(self, point: Point, ways: Sequence[Way]) -> PointRecord:
        """Measure a product; ways of computing it that crash are left out, with the reason.

        Raises:
            RuntimeError: The dense product itself fails.
        """
        left = list(ways)
        refused: list[str] = []
        while True:
            answer = self._ask(point, left)
            if isinstance(answer, PointRecord):
                return answer.model_copy(update={"refused": (*refused, *answer.refused)})
            self.close()
            if answer.way is None or answer.way not in left:
                raise RuntimeError(f"{point.label}: {answer.reason}")
            left.remove(answer.way)
            refused.append(answer.reason)

    def _ask(self, point: Point, ways: Sequence[Way]) -> PointRecord | Failure:
        if self._process is None:
            # CUDA cannot be used in a forked process.
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=self._serve, args=(theirs, *self._arguments), daemon=True)
            self._process.start()
            theirs.close()
        connection = self._connection
        assert connection is not None
        try:
            connection.send((point, tuple(ways)))
            if not connection.poll(_ANSWER_S):
                return Failure(ways[-1] if ways else None, f"{ways[-1].words if ways else 'dense'}: no answer")
            answer: PointRecord | Failure = connection.recv()
        except (EOFError, OSError):
            return Failure(ways[-1] if ways else None, f"{ways[-1].words if ways else 'dense'}: its process died")
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        try:
            if self._connection is not None:
                self._connection.send(None)
        except OSError:
            pass
        self._process.join(_STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process, self._connection = None, None
