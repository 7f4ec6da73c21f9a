"""One product: dense, and by every 2:4 backend that takes its weight."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nm2trt.gpu_benchmark.config import BenchmarkConfig, Point
from nm2trt.gpu_benchmark.gpu_schema import PointRecord, SparseTimes
from nm2trt.gpu_benchmark.timing import Rounds, Timer, time_variants
from nm2trt.profile import statistics
from nm2trt.torch_sparse.backends import BackendName
from nm2trt.torch_sparse.eligibility import why_not_eligible
from nm2trt.torch_sparse.kernel_names import is_sparse_kernel, kernels_of, shares
from nm2trt.torch_sparse.products import (
    DTYPES,
    Algorithm,
    draw_operands,
    multiply_dense,
    relative_error,
    search_algorithm,
    sparse_product,
)

_MOST_SETS = 4
_LARGEST_ERROR = 0.02
"""Relative to the largest output; int8 products must be exact."""

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Way:
    """A way of computing a 2:4 product."""

    backend: BackendName
    searched: bool = False
    """By the algorithm that cuSPARSELt's search finds."""

    @property
    def words(self) -> str:
        """For messages and as key of its times."""
        return f"{self.backend}{'-searched' if self.searched else ''}"


class FailedVariantError(RuntimeError):
    """A way of computing a product failed; the process cannot use the GPU any more."""

    def __init__(self, way: Way, reason: str) -> None:
        super().__init__(f"{way.words} failed: {reason}")
        self.way = way


def ways_of(backends: Sequence[BackendName], *, search: bool) -> tuple[Way, ...]:
    """All ways that are tried; cuSPARSELt alone has a search."""
    ways = [Way(backend) for backend in backends]
    if search:
        ways += [Way(backend, searched=True) for backend in backends if backend == "cusparselt"]
    return tuple(ways)


@dataclass(frozen=True, slots=True)
class Variant:
    """A way with the calls that it makes."""

    way: Way
    algorithm: Algorithm | None
    calls: tuple[Call, ...]


def measure_point(
    point: Point,
    ways: Sequence[Way],
    config: BenchmarkConfig,
    timer: Timer,
    *,
    budget_s: float,
    l2_bytes: float,
    clock: Callable[[], float] = time.perf_counter,
) -> PointRecord:
    """Time a product on this GPU.

    Args:
        point: Its sizes and dtype.
        ways: Of computing it by 2:4 kernels.
        config: The seed.
        timer: How launches are timed.
        budget_s: Seconds for the rounds.
        l2_bytes: Size of the L2 cache; weights are taken in turn from several copies, so that they come from memory.
        clock: Seconds.

    Raises:
        FailedVariantError: A way failed on the GPU.
    """
    dtype = DTYPES[point.dtype]
    weight_bytes = point.n * point.k * dtype.itemsize
    sets = int(np.clip(np.ceil(2 * l2_bytes / weight_bytes), 1, _MOST_SETS))
    operands = [
        draw_operands(point.m, point.n, point.k, dtype, device="cuda", seed=config.seed + number)
        for number in range(sets)
    ]
    dense = [lambda x=x_MK, w=w_NK: multiply_dense(x, w) for x_MK, w_NK in operands]
    variants, refused = _variants(operands, ways)
    calls: dict[str, Sequence[Call]] = {"dense": dense}
    for variant in variants:
        calls[variant.way.words] = variant.calls
        calls[f"{variant.way.words}-repeat"] = variant.calls
    times = time_variants(calls, timer, budget_s=budget_s, seed=config.seed, clock=clock)
    expected = dense[0]()
    return PointRecord(
        m=point.m,
        n=point.n,
        k=point.k,
        dtype=point.dtype,
        origin=point.origin,
        rounds=times.rounds,
        launches_per_round=times.launches,
        dense_us=float(np.median(times.us_by_variant["dense"])),
        dense_kernel=_longest_kernel(dense[0]),
        sparse=tuple(
            sparse_times(variant, times, config.seed, _seen(variant.calls[0], expected)) for variant in variants
        ),
        refused=tuple(refused),
    )


def _variants(
    operands: Sequence[tuple[torch.Tensor, torch.Tensor]], ways: Sequence[Way]
) -> tuple[list[Variant], list[str]]:
    variants: list[Variant] = []
    refused: list[str] = []
    for way in ways:
        reason = why_not_eligible(operands[0][1], way.backend)
        if reason is not None:
            refused.append(reason.words())
            continue
        try:
            choice = search_algorithm(*operands[0]) if way.searched else None
            torch.cuda.synchronize()
            calls = tuple(sparse_product(x, w, way.backend, algorithm=choice) for x, w in operands)
            calls[0]()
            torch.cuda.synchronize()
        except (RuntimeError, AttributeError) as error:
            raise FailedVariantError(way, str(error).partition("\n")[0][:160]) from None
        variants.append(Variant(way, choice, calls))
    return variants, list(dict.fromkeys(refused))


@dataclass(frozen=True, slots=True)
class Seen:
    """What a variant was seen to run and to compute."""

    kernel: str
    relative_error: float


def _seen(call: Call, expected: torch.Tensor) -> Seen:
    return Seen(_longest_kernel(call), relative_error(call(), expected))


def _longest_kernel(call: Call) -> str:
    return next(iter(shares(kernels_of(call))), "")


def sparse_times(variant: Variant, times: Rounds, seed: int, seen: Seen) -> SparseTimes:
    """Compare a variant with the dense product, with itself as the yardstick."""
    sparse_us, repeat_us, dense_us = (
        times.us_by_variant[name][:, None] for name in (variant.way.words, f"{variant.way.words}-repeat", "dense")
    )
    found = statistics.compare(dense_us, sparse_us, repeat_us, seed=seed)
    algorithm = variant.algorithm
    return SparseTimes(
        backend=variant.way.backend,
        searched=algorithm is not None,
        algorithm=(algorithm.alg_id, algorithm.split_k, algorithm.split_k_mode) if algorithm else None,
        median_us=float(np.median(sparse_us)),
        ratio=found.ratio,
        noise=found.noise,
        noise_floor=found.noise_floor,
        finding=found.finding,
        kernel=seen.kernel,
        chosen=is_sparse_kernel(seen.kernel),
        relative_error=seen.relative_error,
    )


def has_wrong_outputs(record: PointRecord) -> bool:
    """Whether a sparse product differs from the dense one by more than rounding."""
    limit = 0.0 if record.dtype == "int8" else _LARGEST_ERROR
    return any(one.relative_error > limit for one in record.sparse)
