"""A server's answers against ONNX Runtime's, request by request."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nm2trt.artifacts.server_report import OutputsRecord, Protocol, ServedOutput
from nm2trt.ort import (
    OutputComparison,
    Reason,
    compare_outputs,
    describe_comparison,
    first_failure,
    merge_comparisons,
)
from nm2trt.serve.answers import Failure, RequestFailed
from nm2trt.serve.client import Client
from nm2trt.serve.compare import output_scales, rescale
from nm2trt.serve.reference import Reference
from nm2trt.serve.samples import Feed

_MOST_ERRORS = 10
"""After so many the server is asked no more."""


@dataclass(slots=True)
class Tally:
    """What one protocol's requests gave."""

    requests: int = 0
    errors: int = 0
    first_error: str = ""
    first_failure: str = ""
    lost_s: float = 0.0
    """Time spent on requests that failed."""
    answers: list[list[OutputComparison]] = field(default_factory=list)

    def add_error(self, where: str, error: RequestFailed, seconds: float) -> None:
        """Count a request without an answer."""
        self.errors += 1
        self.lost_s += seconds
        if not self.first_failure:
            self.first_error, self.first_failure = f"{where}: {error}", error.failure.value


def ask_all(
    clients: Mapping[Protocol, Client],
    requests: Iterable[tuple[str, Feed]],
    reference: Reference,
    *,
    tolerance: float,
    timeout_s: float,
) -> tuple[dict[Protocol, Tally], dict[str, float], bool]:
    """Send every request over every protocol; ONNX Runtime runs each once.

    Args:
        clients: Open connections.
        requests: Where, and input name -> array.
        reference: The build's graph.
        tolerance: Bound on the largest error over the output's size.
        timeout_s: A protocol that lost so much time on requests that failed is asked no more.

    Returns:
        A tally for each protocol, each output's size over all requests, and whether two requests of one shape have
        answers that differ by more than the bound.
    """
    tallies: dict[Protocol, Tally] = {protocol: Tally() for protocol in clients}
    scales: dict[str, float] = {}
    first: Feed | None = None
    distinct = False
    for where, feed in requests:
        open_ones = [
            (protocol, client)
            for protocol, client in clients.items()
            if tallies[protocol].errors < _MOST_ERRORS and tallies[protocol].lost_s < timeout_s
        ]
        if not open_ones:
            break
        expected = reference.run(feed)
        for name, scale in output_scales([expected]).items():
            scales[name] = max(scale, scales.get(name, 0.0))
        first = first or expected
        distinct = distinct or any(
            one.reason in (Reason.TOLERANCE, Reason.NOT_EQUAL, Reason.NON_FINITE)
            for one in compare_outputs(first, expected, tolerance=tolerance)
        )
        for protocol, client in open_ones:
            tally = tallies[protocol]
            tally.requests += 1
            started = time.monotonic()
            try:
                found = client.infer(feed)
            except RequestFailed as error:
                tally.add_error(where, error, time.monotonic() - started)
                continue
            tally.answers.append(
                [replace(one, piece=where) for one in compare_outputs(expected, found, tolerance=tolerance)]
            )
    return tallies, scales, distinct


def unanswered(error: RequestFailed) -> Tally:
    """The tally of a protocol over which nothing was asked, since it is not even known to be ready."""
    tally = Tally(requests=1)
    tally.add_error("readiness", error, 0.0)
    return tally


def outputs_record(
    tally: Tally,
    scales: Mapping[str, float],
    *,
    protocol: Protocol,
    words: str,
    samples: int,
    batches: tuple[int, ...],
    tolerance: float,
    version: str,
) -> OutputsRecord:
    """Sum a tally up.

    Args:
        tally: Of one protocol.
        scales: Each output's size over all requests.
        protocol: For the record.
        words: What the samples are.
        samples: How many.
        batches: Sizes of the requests.
        tolerance: Bound on the largest error over the output's size.
        version: That must answer.
    """
    answers = [[rescale(one, scales) for one in answer] for answer in tally.answers]
    by_name: dict[str, list[OutputComparison]] = {}
    for answer in answers:
        for one in answer:
            by_name.setdefault(one.name, []).append(one)
    merged = [rescale(merge_comparisons(pieces), scales) for pieces in by_name.values()]
    outputs = tuple(_served(one) for one in merged)
    wrong = sum(not all(one.passed for one in answer) for answer in answers)
    worst = first_failure(merged) or max(merged, key=lambda one: one.max_rel_error, default=None)
    return OutputsRecord(
        protocol=protocol,
        inputs=words,
        samples=samples,
        batches=batches,
        max_abs_error=max((one.max_abs_error for one in outputs), default=0.0),
        max_rel_error=max((one.max_rel_error for one in outputs), default=0.0),
        tolerance=tolerance,
        worst_at="" if worst is None else describe_comparison(worst, other="server"),
        passed=not wrong and not tally.errors and bool(answers) and all(one.passed for one in merged),
        version=version,
        requests=tally.requests,
        errors=tally.errors,
        wrong=wrong,
        first_error=tally.first_error,
        first_failure=tally.first_failure,
        outputs=outputs,
    )


def output_problems(record: OutputsRecord) -> list[str]:
    """Sentences on what failed."""
    problems = []
    if record.first_failure in (Failure.NO_ANSWER, Failure.UNREACHABLE) and record.errors == record.requests:
        problems.append(f"{record.protocol}, {record.first_error}")
    elif record.errors:
        problems.append(
            f"{record.protocol}: {record.errors} of {record.requests} requests failed; first: {record.first_error}"
        )
    if record.wrong:
        problems.append(
            f"{record.protocol}: outputs differ from ONNX Runtime's in {record.wrong} of {record.requests} answers, "
            f"bound {record.tolerance:.0e}: {record.worst_at}"
        )
    return problems


def _served(one: OutputComparison) -> ServedOutput:
    numeric = one.reason in (Reason.AGREE, Reason.TOLERANCE, Reason.NOT_EQUAL)
    return ServedOutput(
        name=one.name,
        reason=one.reason.value,
        message="" if one.passed else describe_comparison(one, other="server"),
        max_abs_error=one.max_abs_error if numeric else math.inf,
        max_rel_error=one.max_rel_error if numeric else math.inf,
    )
