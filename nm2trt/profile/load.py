"""Throughput and latency under load: concurrent streams, requests that arrive whether or not the last is done.

Arrivals are drawn before the run (Poisson), and a latency counts from the moment a request was due. So a slow call
charges its delay to everything that had to wait behind it: no coordinated omission, the mistake of clients that only
send when they got their answer (G. Tene, "How NOT to Measure Latency").
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nm2trt.artifacts.report import VariantName
from nm2trt.artifacts.report_layers import LoadPointRecord, LoadRecord
from nm2trt.profile.config import ProfileConfig
from nm2trt.profile.runners.runner import Runner

Seconds = NDArray[np.float64]

SHARES = (0.5, 0.7, 0.9)
"""Of the slower variant's capacity; the rates that are tried where none are given."""
_FEWEST_REQUESTS = 50
_GROWTH = 0.05
"""The queue grows when the last quarter of requests takes so much longer than the first, as a share of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What became of every request, in seconds from the start, in the order of arrival."""

    due_s: Seconds
    started_s: Seconds
    done_s: Seconds
    idle_start: NDArray[np.bool_]
    """A stream was already waiting when the request fell due."""


def arrivals(rate_per_s: float, duration_s: float, *, seed: int) -> Seconds:
    """Moments at which requests are due: a Poisson process of `rate_per_s`, at least 50 of them."""
    rng = np.random.default_rng(seed)
    count = max(_FEWEST_REQUESTS, int(np.ceil(rate_per_s * duration_s)))
    return np.cumsum(rng.exponential(1 / rate_per_s, count))


def serve(
    calls: Sequence[Callable[[], None]],
    due_s: Seconds,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Served:
    """Serve requests in the order of their arrival, each by the first stream that is free.

    Args:
        calls: One for each stream; each runs in a thread of its own, and blocks until its request is done.
        due_s: From `arrivals`.
        clock: Seconds; replaced in tests.
        sleep: Waits; replaced in tests.
    """
    started_s, done_s = np.zeros(len(due_s)), np.zeros(len(due_s))
    idle = np.zeros(len(due_s), dtype=np.bool_)
    lock = threading.Lock()
    position = 0
    failures: list[BaseException] = []
    origin = clock()

    def work(call: Callable[[], None]) -> None:
        nonlocal position
        while not failures:
            with lock:
                index = position
                position += 1
            if index >= len(due_s):
                return
            ahead_s = due_s[index] - (clock() - origin)
            if ahead_s > 0:
                idle[index] = True
                sleep(ahead_s)
            started_s[index] = clock() - origin
            try:
                call()
            except BaseException as error:  # noqa: BLE001 -- raised again below, in the caller's thread
                failures.append(error)
            done_s[index] = clock() - origin

    if len(calls) == 1:
        work(calls[0])
    else:
        threads = [threading.Thread(target=work, args=(call,), daemon=True) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return Served(due_s=due_s, started_s=started_s, done_s=done_s, idle_start=idle)


def point(variant: str, rate_per_s: float, served: Served) -> LoadPointRecord:
    """Describe one variant at one rate."""
    latency_s = served.done_s - served.due_s
    waiting_s = served.started_s - served.due_s
    late_s = waiting_s[served.idle_start]
    quarter = max(1, len(latency_s) // 4)
    growth_s = float(np.median(latency_s[-quarter:]) - np.median(latency_s[:quarter]))
    median_ms, p90_ms, p99_ms = 1000 * np.quantile(latency_s, [0.5, 0.9, 0.99])
    return LoadPointRecord(
        variant=variant,
        rate_per_s=rate_per_s,
        requests=len(latency_s),
        achieved_per_s=len(latency_s) / float(served.done_s.max()),
        median_ms=float(median_ms),
        p90_ms=float(p90_ms),
        p99_ms=float(p99_ms),
        max_ms=1000 * float(latency_s.max()),
        waiting_share=float(waiting_s.clip(0).sum() / latency_s.sum()),
        lateness_p99_ms=1000 * float(np.quantile(late_s, 0.99)) if late_s.size else 0.0,
        saturated=growth_s > _GROWTH * float(served.due_s[-1]),
    )


def capacity_per_s(calls: Sequence[Callable[[], None]], duration_s: float) -> float:
    """Requests a second when every stream always has work."""
    for call in calls:
        call()
    started = time.perf_counter()
    counts = [0] * len(calls)

    def work(index: int) -> None:
        while time.perf_counter() - started < duration_s:
            calls[index]()
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def measure_load(
    runners: Mapping[VariantName, Runner],
    config: ProfileConfig,
    *,
    batch: int,
    progress: Callable[[float], None] = lambda _share: None,
) -> LoadRecord:
    """Load prepared runners: first what they can do, then every rate on every variant with the same arrivals.

    Args:
        runners: Variant -> runner, prepared with `batch`.
        config: Streams, rates, duration (for each variant and rate) and seed.
        batch: Samples of a request.
        progress: Called with the share done.
    """
    streams = {variant: runner.streams(config.streams) for variant, runner in runners.items()}
    duration_s = config.duration_s
    capacity: dict[str, float] = {variant: capacity_per_s(calls, duration_s / 2) for variant, calls in streams.items()}
    rates = config.rates or tuple(round(share * min(capacity.values()), 3) for share in SHARES)
    rng = np.random.default_rng(config.seed)
    points: list[LoadPointRecord] = []
    names = list(streams)
    for number, rate in enumerate(rates):
        due_s = arrivals(rate, duration_s, seed=config.seed + number)
        for index in rng.permutation(len(names)):
            points.append(point(names[index], rate, serve(streams[names[index]], due_s)))
            progress(len(points) / (len(rates) * len(names)))
    points.sort(key=lambda one: (one.rate_per_s, names.index(one.variant)))  # type: ignore[arg-type]
    return LoadRecord(
        batch=batch,
        streams=config.streams,
        duration_s=duration_s,
        seed=config.seed,
        capacity_per_s=capacity,
        points=tuple(points),
        sentence=_sentence(capacity, points, config.streams, batch),
    )


def _sentence(capacity: Mapping[str, float], points: Sequence[LoadPointRecord], streams: int, batch: int) -> str:
    held = [one for one in points if not one.saturated]
    words = ", ".join(f"{variant} {value:,.1f}" for variant, value in capacity.items())
    text = f"With {streams} stream{'' if streams == 1 else 's'} and batch {batch}: {words} requests/s at most."
    if held:
        rate = max(one.rate_per_s for one in held)
        p99 = ", ".join(f"{one.variant} {one.p99_ms:.4g} ms" for one in held if one.rate_per_s == rate)
        text += f" At {rate:,.4g} requests/s, 99 % are answered within: {p99}."
    return text
