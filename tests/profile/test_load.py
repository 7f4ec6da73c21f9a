"""Load on a clock that only the calls move, and on real threads."""

import time

import numpy as np
import pytest

from nm2trt.profile.load import arrivals, point, serve


class Clock:
    """Time that passes only in calls and in sleep."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds


def served(due_s, service_s):
    clock, left = Clock(), list(service_s)

    def call():
        clock.now_s += left.pop(0)

    return serve([call], due_s, clock=clock, sleep=clock.sleep)


@pytest.mark.parametrize("rate", [5.0, 9.0, 12.0])
def test_one_stream_is_lindleys_queue(rate):
    rng = np.random.default_rng(1)
    due_s = arrivals(rate, 60.0, seed=3)
    service_s = rng.uniform(0.05, 0.15, len(due_s))
    found = served(due_s, service_s)
    done, expected = 0.0, []
    for due, service in zip(due_s, service_s, strict=True):
        done = max(due, done) + service
        expected.append(done)
    np.testing.assert_allclose(found.done_s, expected, rtol=1e-9)
    assert point("sparse", rate, found).saturated == (rate > 10)


def test_a_stall_is_charged_to_all_that_wait_behind_it():
    """A client that waits for its answers would see one slow call of a hundred, and a 90th percentile of 1 ms."""
    due_s = np.arange(1, 101) * 0.01
    service_s = np.full(100, 0.001)
    service_s[10] = 0.5
    found = point("dense", 100.0, served(due_s, service_s))
    assert found.p90_ms > 300
    assert found.max_ms == pytest.approx(500, abs=1)
    assert found.waiting_share > 0.9
    calm = point("dense", 100.0, served(due_s, np.full(100, 0.001)))
    assert calm.p99_ms == pytest.approx(1.0, abs=1e-6)
    assert not calm.saturated


def test_arrivals_are_poisson_at_the_rate():
    due_s = arrivals(200.0, 50.0, seed=0)
    gaps_s = np.diff(due_s)
    assert np.mean(gaps_s) == pytest.approx(1 / 200, rel=0.05)
    assert np.std(gaps_s) == pytest.approx(1 / 200, rel=0.05)
    assert np.array_equal(due_s, arrivals(200.0, 50.0, seed=0))
    assert len(arrivals(0.1, 1.0, seed=0)) == 50


def test_threads_serve_every_request_once_and_none_before_it_is_due():
    counts = []
    calls = [lambda: counts.append(time.sleep(0.001)) for _ in range(3)]
    due_s = arrivals(500.0, 0.3, seed=1)
    found = serve(calls, due_s)
    assert len(counts) == len(due_s)
    assert np.all(found.started_s >= found.due_s - 1e-4)
    assert np.all(found.done_s >= found.started_s)


def test_a_failing_call_is_raised():
    def broken():
        raise RuntimeError("lost the device")

    with pytest.raises(RuntimeError, match="lost the device"):
        serve([broken, broken], arrivals(1000.0, 0.05, seed=0))
