"""Load at rising concurrency: closed loop, each client waits for its answer before it asks again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from nm2trt.artifacts.server_report import LoadRecord, Protocol, SaturationRecord
from nm2trt.serve.client import GrpcClient, HttpClient, RequestFailed
from nm2trt.serve.samples import Samples, largest_error

OpenClient = Callable[[], AbstractContextManager[HttpClient | GrpcClient]]

MOST_REQUESTS = 50_000
"""Of one level."""
MOST_ERRORS = 1000
"""After so many the level ends: the server is gone."""
GAIN = 0.05
"""A level that brings less throughput than this share more is no gain."""
_PAUSE_S = 0.02
_OPEN_S = 60.0
_LEVELS_WITHOUT_GAIN = 2


@dataclass(slots=True)
class _Tally:
    """What one client saw."""

    latencies_ms: list[float] = field(default_factory=list)
    errors: int = 0
    wrong: int = 0
    first_error: str = ""


def run_level(
    protocol: Protocol,
    open_client: OpenClient,
    samples: Samples,
    *,
    concurrency: int,
    duration_s: float,
    tolerance: float,
) -> LoadRecord:
    """Keep `concurrency` clients busy for `duration_s` seconds, and compare every answer.

    Args:
        protocol: For the record.
        open_client: Opens one client's connection.
        samples: Requests with the answers they must get.
        concurrency: Clients.
        duration_s: Seconds; the requests that are under way at the end are waited for.
        tolerance: Bound on an answer's relative error.
    """
    tallies = [_Tally() for _ in range(concurrency)]
    started: list[float] = []

    def begin() -> None:
        started.extend((time.perf_counter(), time.process_time()))

    gate = threading.Barrier(concurrency + 1, action=begin, timeout=_OPEN_S)

    def client(number: int) -> None:
        with open_client() as one:
            gate.wait()
            _ask(one, samples, tallies[number], number, concurrency, started[0] + duration_s, tolerance)

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(concurrency)]
    for thread in threads:
        thread.start()
    gate.wait()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started[0]
    busy_s = time.process_time() - started[1]
    return _record(protocol, tallies, seconds=seconds, busy_s=busy_s)


def _ask(
    client: HttpClient | GrpcClient,
    samples: Samples,
    tally: _Tally,
    number: int,
    concurrency: int,
    deadline: float,
    tolerance: float,
) -> None:
    at = number
    for _ in range(MOST_REQUESTS // concurrency):
        if time.perf_counter() >= deadline or tally.errors >= max(MOST_ERRORS // concurrency, 1):
            return
        feed, expected = samples.request(at)
        at += concurrency
        before = time.perf_counter()
        try:
            found = client.infer(feed)
        except RequestFailed as error:
            tally.errors += 1
            tally.first_error = tally.first_error or str(error)
            time.sleep(_PAUSE_S)
            continue
        latency_ms = (time.perf_counter() - before) * 1000
        _, relative, where = largest_error(expected, found)
        if relative <= tolerance:
            tally.latencies_ms.append(latency_ms)
        else:
            tally.wrong += 1
            tally.first_error = tally.first_error or f"wrong answer, {where}"


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
