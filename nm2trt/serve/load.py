"""Load at rising concurrency: closed loop, each client waits for its answer before it asks again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from nm2trt.artifacts.server_report import LoadRecord, Protocol, SaturationRecord
from nm2trt.ort import describe_comparison, first_failure
from nm2trt.serve.answers import RequestFailed
from nm2trt.serve.client import TIMEOUT_S, Client
from nm2trt.serve.compare import compare_answer, output_scales
from nm2trt.serve.reference import Reference
from nm2trt.serve.samples import SAMPLES, Feed, SampleSet

OpenClient = Callable[[], AbstractContextManager[Client]]
Request = tuple[Feed, Feed]
"""Inputs, and the outputs they must get."""

MOST_REQUESTS = 50_000
"""Of one level."""
MOST_ERRORS = 1000
"""After so many the level ends: the server is gone."""
GAIN = 0.05
"""A level that brings less throughput than this share more is no gain."""
_PAUSE_S = 0.02
_OPEN_S = 60.0
_END_S = 10.0
_LEVELS_WITHOUT_GAIN = 2
_MOST_BYTES = 256 << 20
"""Of the requests and answers that a load test holds."""


@dataclass(slots=True)
class _Tally:
    """What one client saw."""

    latencies_ms: list[float] = field(default_factory=list)
    errors: int = 0
    wrong: int = 0
    first_error: str = ""

    def add_error(self, words: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or words


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """What the clients of one level share."""

    requests: Sequence[Request]
    scales: Mapping[str, float]
    concurrency: int
    duration_s: float
    tolerance: float


def load_requests(samples: SampleSet, reference: Reference) -> list[Request]:
    """Requests of one sample each, spread over all samples, with the answers they must get."""
    requests: list[Request] = []
    size = 0
    each = max(SAMPLES // len(samples.groups), 1)
    for group in samples.groups:
        for at in np.unique(np.linspace(0, group.count - 1, min(each, group.count)).astype(int)):
            feed = group.feed(int(at))
            expected = reference.run(feed)
            size += sum(array.nbytes for array in (*feed.values(), *expected.values()))
            if requests and size > _MOST_BYTES:
                break
            requests.append((feed, expected))
    return requests


def run_level(
    protocol: Protocol,
    open_client: OpenClient,
    requests: Sequence[Request],
    *,
    concurrency: int,
    duration_s: float,
    tolerance: float,
    timeout_s: float = TIMEOUT_S,
) -> LoadRecord:
    """Keep `concurrency` clients busy for `duration_s` seconds, and compare every answer.

    A client that ends by itself, whatever the reason, or does not end at all counts as an error.

    Args:
        protocol: For the record.
        open_client: Opens one client's connection.
        requests: With the answers they must get.
        concurrency: Clients.
        duration_s: Seconds; the requests that are under way at the end are waited for.
        tolerance: Bound on an answer's relative error.
        timeout_s: Of one request.
    """
    tallies = [_Tally() for _ in range(concurrency)]
    level = _Level(
        requests=requests,
        scales=output_scales(expected for _, expected in requests),
        concurrency=concurrency,
        duration_s=duration_s,
        tolerance=tolerance,
    )
    started: list[float] = []

    def begin() -> None:
        started.extend((time.perf_counter(), time.process_time()))

    gate = threading.Barrier(concurrency + 1, action=begin, timeout=_OPEN_S)

    threads = [
        threading.Thread(target=_run_client, args=(open_client, gate, tally, number, level, started), daemon=True)
        for number, tally in enumerate(tallies)
    ]
    try:
        for thread in threads:
            thread.start()
        gate.wait()
    except threading.BrokenBarrierError:
        if not any(tally.errors for tally in tallies):
            tallies[0].add_error(f"the clients were not open after {_OPEN_S:g} s")
    except RuntimeError as error:
        gate.abort()
        tallies[0].add_error(f"cannot start {concurrency} clients: {error}")
    if not started:
        begin()
    _join(threads, tallies, time_s=duration_s + timeout_s + _END_S)
    seconds = time.perf_counter() - started[0]
    busy_s = time.process_time() - started[1]
    return _record(protocol, tallies, seconds=seconds, busy_s=busy_s)


def _run_client(
    open_client: OpenClient,
    gate: threading.Barrier,
    tally: _Tally,
    number: int,
    level: _Level,
    started: Sequence[float],
) -> None:
    """One client, from its connection to its last answer; `started` is filled once all are connected."""
    try:
        with open_client() as one:
            gate.wait()
            _ask(one, tally, number, level, started[0] + level.duration_s)
    except threading.BrokenBarrierError:
        # The client that could not start says why.
        pass
    except BaseException as error:  # noqa: BLE001 -- a thread's exception would be lost, and the check passed
        tally.add_error(f"a client failed: {type(error).__name__}: {error}")
        gate.abort()


def _join(threads: Sequence[threading.Thread], tallies: Sequence[_Tally], *, time_s: float) -> None:
    """Wait for all clients; one that does not end is an error."""
    deadline = time.monotonic() + time_s
    for thread, tally in zip(threads, tallies, strict=True):
        if thread.ident is None:
            continue
        thread.join(max(deadline - time.monotonic(), 0.01))
        if thread.is_alive():
            tally.add_error("a client's request did not end")


def _ask(client: Client, tally: _Tally, number: int, level: _Level, end: float) -> None:
    """Ask until the time is up, once at least."""
    requests = level.requests
    first = number * len(requests) // level.concurrency
    for turn in range(max(MOST_REQUESTS // level.concurrency, 1)):
        if (turn and time.perf_counter() >= end) or tally.errors >= max(MOST_ERRORS // level.concurrency, 1):
            return
        feed, expected = requests[(first + turn) % len(requests)]
        before = time.perf_counter()
        try:
            found = client.infer(feed)
        except RequestFailed as error:
            tally.add_error(str(error))
            time.sleep(_PAUSE_S)
            continue
        latency_ms = (time.perf_counter() - before) * 1000
        failed = first_failure(compare_answer(expected, found, tolerance=level.tolerance, scales=level.scales))
        if failed is None:
            tally.latencies_ms.append(latency_ms)
        else:
            tally.wrong += 1
            tally.first_error = tally.first_error or f"wrong answer, {describe_comparison(failed, other='server')}"


def _record(protocol: Protocol, tallies: Sequence[_Tally], *, seconds: float, busy_s: float) -> LoadRecord:
    latencies_ms = np.concatenate([np.asarray(tally.latencies_ms, np.float64) for tally in tallies])
    p50, p90, p99 = np.percentile(latencies_ms, [50, 90, 99]) if latencies_ms.size else (0.0, 0.0, 0.0)
    return LoadRecord(
        protocol=protocol,
        concurrency=len(tallies),
        seconds=seconds,
        requests=int(latencies_ms.size),
        errors=sum(tally.errors for tally in tallies),
        wrong=sum(tally.wrong for tally in tallies),
        first_error=next((tally.first_error for tally in tallies if tally.first_error), ""),
        throughput_per_s=latencies_ms.size / seconds,
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        client_cpu_share=busy_s / seconds,
    )


def levels(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, which is the last."""
    powers = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    return powers if powers[-1] == most else [*powers, most]


def until_saturated(run: Callable[[int], LoadRecord], concurrencies: Sequence[int]) -> Iterator[LoadRecord]:
    """Run level after level; stop when two in a row brought no gain, or one failed."""
    best, idle = 0.0, 0
    for concurrency in concurrencies:
        record = run(concurrency)
        yield record
        if record.errors or record.wrong:
            return
        idle = 0 if record.throughput_per_s > best * (1 + GAIN) else idle + 1
        best = max(best, record.throughput_per_s)
        if idle >= _LEVELS_WITHOUT_GAIN:
            return


def saturation(records: Sequence[LoadRecord]) -> SaturationRecord:
    """Say where throughput stopped to grow: the first level within 5 % of the best."""
    most = max(record.throughput_per_s for record in records)
    first = next(record for record in records if record.throughput_per_s * (1 + GAIN) >= most)
    saturated = first is not records[-1]
    failed = bool(records[-1].errors or records[-1].wrong)
    words = (
        f"{first.throughput_per_s:,.0f} requests/s at concurrency {first.concurrency}, p50 {first.p50_ms:.2f} ms, "
        f"p99 {first.p99_ms:.2f} ms"
    )
    if failed:
        words += f"; stopped at concurrency {records[-1].concurrency}, where requests failed"
    elif saturated:
        words += "; more clients brought no more"
    else:
        words += "; still growing there: raise --max-concurrency to find the end"
    if first.client_cpu_share > 0.9:
        words += f". The clients used {first.client_cpu_share:.1f} cores: they, not the server, may be the limit"
    return SaturationRecord(
        protocol=records[0].protocol,
        saturated=saturated and not failed,
        concurrency=first.concurrency,
        throughput_per_s=first.throughput_per_s,
        p99_ms=first.p99_ms,
        sentence=words,
    )
