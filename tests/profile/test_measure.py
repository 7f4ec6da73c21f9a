"""The order of the calls, on a clock that only the runners move."""

from collections import Counter

import numpy as np
import pytest

from nm2trt.profile.measure import measure
from nm2trt.profile.statistics import MIN_ROUNDS


class Clock:
    def __init__(self):
        self.now_s = 0.0
        self.calls = []

    def __call__(self):
        return self.now_s


class Pretend:
    """A runner that takes `latency_ms(call number)` on the shared clock."""

    def __init__(self, clock, name, latency_ms):
        self.clock, self.name, self.latency_ms, self.count = clock, name, latency_ms, 0

    def run_once(self):
        value = self.latency_ms(self.count)
        self.count += 1
        self.clock.now_s += value / 1000
        self.clock.calls.append(self.name)
        return value


def variants(clock, **latency_ms):
    return {
        name: Pretend(clock, name, latency if callable(latency) else lambda _n, v=latency: v)
        for name, latency in latency_ms.items()
    }


def test_rounds_are_paired_and_their_order_is_shuffled():
    clock = Clock()
    found = measure(variants(clock, a=1.0, b=2.0, c=3.0), duration_s=6.0, seed=0, clock=clock)
    assert found.steady
    assert {values.shape for values in found.latency_ms.values()} == {(found.rounds, found.calls_per_round)}
    assert 50 <= found.rounds <= 150
    assert np.all(found.latency_ms["b"] == 2.0)
    # After warm-up, each round is one block per variant: an untimed call and the timed ones.
    timed = clock.calls[-found.rounds * 3 * (found.calls_per_round + 1) :]
    size = found.calls_per_round + 1
    blocks = [timed[at : at + size] for at in range(0, len(timed), size)]
    assert all(len(set(block)) == 1 for block in blocks)
    orders = Counter(tuple(block[0] for block in blocks[at : at + 3]) for at in range(0, len(blocks), 3))
    assert set(orders) == {tuple(order) for order in ("abc", "acb", "bac", "bca", "cab", "cba")}


def test_same_seed_same_order():
    runs = []
    for _ in range(2):
        clock = Clock()
        measure(variants(clock, a=1.0, b=1.0), duration_s=1.0, seed=5, clock=clock)
        runs.append(clock.calls)
    assert runs[0] == runs[1]


@pytest.mark.parametrize(("latency_ms", "rounds"), [(40.0, MIN_ROUNDS), (400.0, 8), (60_000.0, 1)])
def test_a_slow_network_gets_overtime_but_not_for_ever(latency_ms, rounds):
    clock = Clock()
    found = measure(variants(clock, a=latency_ms, b=latency_ms), duration_s=4.0, seed=0, clock=clock)
    assert found.rounds == rounds
    assert found.calls_per_round == 1


def test_warm_up_waits_until_steady_and_no_longer_than_its_limit():
    clock = Clock()
    found = measure(variants(clock, a=lambda n: 1.0 + 9.0 * 0.9**n, b=1.0), duration_s=2.0, seed=0, clock=clock)
    assert found.steady
    assert float(found.latency_ms["a"].max()) < 1.2
    clock = Clock()
    never = measure(variants(clock, a=lambda n: 1.0 * 1.01**n, b=1.0), duration_s=0.5, seed=0, clock=clock)
    assert not never.steady
    assert never.warmup_s < 1.0


def test_progress_ends_at_one():
    shares = []
    clock = Clock()
    measure(variants(clock, a=1.0), duration_s=1.0, seed=0, clock=clock, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
