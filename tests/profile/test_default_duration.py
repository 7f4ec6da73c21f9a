"""The whole way from calls to finding at the default duration, on a clock that only the calls move."""

import numpy as np
import pytest

from nm2trt.profile.config import ProfileConfig
from nm2trt.profile.measure import measure
from nm2trt.profile.statistics import compare

TRIALS = 40
LATENCY_MS = 8.0


class World:
    """A machine whose speed drifts and which is interrupted now and then."""

    def __init__(self, seed, *, drift, stray):
        self.now_s, self.rng, self.drift, self.stray = 0.0, np.random.default_rng(seed), drift, stray

    def variant(self, level):
        world = self

        class Variant:
            def run_once(self):
                noise = np.exp(0.02 * world.rng.standard_normal())
                latency_ms = LATENCY_MS * level * noise * (1 + world.drift * world.now_s)
                if world.rng.random() < world.stray:
                    latency_ms *= 8
                world.now_s += latency_ms / 1000
                return latency_ms

        return Variant()


def finding(seed, gain, **world):
    here = World(seed, **world)
    variants = {"dense": here.variant(gain), "sparse": here.variant(1.0), "sparse-repeat": here.variant(1.0)}
    duration_s = ProfileConfig().duration_s
    times = measure(variants, duration_s=duration_s, seed=seed, clock=lambda: here.now_s).latency_ms
    return compare(times["dense"], times["sparse"], times["sparse-repeat"], seed=seed).finding


WORLDS = {"calm": {"drift": 0.0, "stray": 0.0}, "drift and stray calls": {"drift": 0.03, "stray": 0.02}}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_a_network_against_itself_is_no_difference(world):
    found = [finding(seed, 1.0, **world) for seed in range(TRIALS)]
    assert found.count("no-difference") >= 0.95 * TRIALS


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_five_percent_is_found(world):
    found = [finding(seed, 1.05, **world) for seed in range(TRIALS // 2)]
    assert found.count("sparse-faster") >= 0.95 * len(found)
