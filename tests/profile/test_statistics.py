"""Findings on made-up timings whose truth is known."""

import math

import numpy as np
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nm2trt.profile.findings import Kernels, headline, sentence
from nm2trt.profile.statistics import MIN_ROUNDS, compare, paired_ratio, summarize

ROUNDS, CALLS, NOISE = 100, 3, 0.02
TRIALS = 80
GAIN_TRIALS = 25


def timings(rng, *, gain=1.0, noise=NOISE, rounds=ROUNDS, calls=CALLS, common=1.0, spoil=lambda rng, t: t):
    """Dense, sparse, sparse-repeat in ms; `common` multiplies all variants of a round, `spoil` strikes single calls."""
    common = np.broadcast_to(np.asarray(common, dtype=float).reshape(-1, 1), (rounds, 1))
    variants = [level * common * np.exp(noise * rng.standard_normal((rounds, calls))) for level in (gain, 1.0, 1.0)]
    return [spoil(rng, variant) for variant in variants]


def findings(trials=TRIALS, **how):
    rng = np.random.default_rng(1234)
    return [compare(*timings(rng, **how), seed=trial).finding for trial in range(trials)]


def share(found, wanted):
    return sum(one == wanted for one in found) / len(found)


def strike(rng, variant):
    """Three calls in a hundred take ten times as long."""
    return np.where(rng.random(variant.shape) < 0.03, 10 * variant, variant)


def strike_whole_rounds(rng, variant):
    """In a tenth of the rounds something else had the processor while this variant ran."""
    return np.where(rng.random((variant.shape[0], 1)) < 0.1, 1.7 * variant, variant)


def skewed(rng, variant):
    """Latencies have a long tail to the right."""
    return variant * (1 + rng.exponential(0.02, variant.shape))


DRIFT = np.linspace(1.0, 1.6, ROUNDS)
STEP = np.where(np.arange(ROUNDS) < 37, 1.0, 1.35)
WALK = np.exp(np.cumsum(0.02 * np.random.default_rng(7).standard_normal(ROUNDS)))
CIRCUMSTANCES = {
    "quiet": {},
    "loud": {"noise": 0.15},
    "drift": {"common": DRIFT},
    "step": {"common": STEP},
    "walk": {"common": WALK},
    "outliers": {"spoil": strike},
    "stolen rounds": {"spoil": strike_whole_rounds},
    "tail": {"spoil": skewed},
    "one call per round": {"calls": 1},
    "few rounds": {"rounds": MIN_ROUNDS},
}


@pytest.mark.parametrize("how", CIRCUMSTANCES.values(), ids=CIRCUMSTANCES)
def test_the_same_network_is_no_difference(how):
    assert share(findings(**how), "no-difference") >= 0.95


@pytest.mark.parametrize(
    "name", ["quiet", "drift", "step", "walk", "outliers", "stolen rounds", "tail", "one call per round"]
)
@pytest.mark.parametrize(("gain", "wanted"), [(1.05, "sparse-faster"), (1 / 1.05, "sparse-slower")])
def test_five_percent_is_found_and_has_the_right_sign(name, gain, wanted):
    assert share(findings(GAIN_TRIALS, gain=gain, **CIRCUMSTANCES[name]), wanted) >= 0.95


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(5)
    covered = 0
    trials = 300
    for trial in range(trials):
        dense, sparse, _ = timings(rng, gain=1.05, calls=1)
        ratio = paired_ratio(dense, sparse, seed=trial)
        covered += ratio.low <= 1.05 <= ratio.high
    # 95 % with the binomial spread of 300 trials, and the known small shortfall of a percentile interval.
    assert 0.91 <= covered / trials <= 0.99


def test_a_session_that_is_slow_by_itself_raises_the_noise_floor():
    """The second copy runs 8 % slower for no reason, so 5 % between dense and sparse means nothing."""
    rng = np.random.default_rng(3)
    dense, sparse, again = timings(rng, gain=1.05)
    found = compare(dense, sparse, 1.08 * again, seed=0)
    assert found.finding == "no-difference"
    assert found.noise_floor > 0.07


def test_too_few_rounds_decide_nothing():
    rng = np.random.default_rng(3)
    assert compare(*timings(rng, gain=2.0, rounds=MIN_ROUNDS - 1), seed=0).finding == "too-few-rounds"
    one = compare(*timings(rng, gain=2.0, rounds=1), seed=0)
    assert (one.finding, one.noise_floor) == ("too-few-rounds", math.inf)


def test_exchanging_the_arms_gives_the_reciprocals():
    rng = np.random.default_rng(8)
    dense, sparse, _ = timings(rng, gain=1.3, rounds=101)
    there, back = paired_ratio(dense, sparse, seed=0), paired_ratio(sparse, dense, seed=0)
    assert there.value == pytest.approx(1 / back.value, rel=1e-12)
    assert there.low == pytest.approx(1 / back.high, rel=2e-3)
    assert there.high == pytest.approx(1 / back.low, rel=2e-3)


def test_same_seed_same_interval():
    rng = np.random.default_rng(8)
    dense, sparse, _ = timings(rng)
    assert paired_ratio(dense, sparse, seed=4) == paired_ratio(dense, sparse, seed=4)


def test_unpaired_rounds_are_a_bug():
    with pytest.raises(ValueError, match="3 and 4 rounds"):
        paired_ratio(np.ones((3, 1)), np.ones((4, 1)), seed=0)


@examples(50)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 4)), elements=st.floats(1e-3, 1e4)),
    st.integers(1, 64),
)
def test_summary_against_the_plain_definitions(latency_ms, batch):
    variant = summarize("dense", latency_ms, batch=batch)
    values = sorted(float(value) for value in latency_ms.ravel())

    def quantile(percent):
        place = percent / 100 * (len(values) - 1)
        below = math.floor(place)
        above = min(below + 1, len(values) - 1)
        return values[below] + (place - below) * (values[above] - values[below])

    mean = math.fsum(values) / len(values)
    assert variant.calls == len(values)
    assert variant.mean_ms == pytest.approx(mean)
    assert variant.throughput_per_s == pytest.approx(batch / (mean / 1000))
    assert (variant.median_ms, variant.p90_ms, variant.p99_ms) == pytest.approx(
        (quantile(50), quantile(90), quantile(99))
    )
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    assert variant.coefficient_of_variation == pytest.approx(spread / mean, abs=1e-7)
    assert len(variant.quantiles_ms) == 101
    assert list(variant.quantiles_ms) == sorted(variant.quantiles_ms)


def test_words():
    rng = np.random.default_rng(2)
    same = compare(*timings(rng), seed=0)
    gain = compare(*timings(rng, gain=1.13), seed=0)
    assert sentence(same, rounds=ROUNDS, kernels=Kernels(exist=False)).startswith(
        "no difference that this run could show (A/A"
    )
    without = sentence(gain, rounds=ROUNDS, kernels=Kernels(exist=False))
    assert without.startswith("sparse is 1.13x [1.1")
    assert "not from sparsity" in without
    assert "not observed" in sentence(gain, rounds=ROUNDS, kernels=Kernels(exist=None))
    none = sentence(gain, rounds=ROUNDS, kernels=Kernels(exist=True, chosen=0, weighted=47, noun="convolutions"))
    assert none.endswith("which is not from sparsity: none of 47 convolutions runs a sparse kernel")
    some = sentence(gain, rounds=ROUNDS, kernels=Kernels(exist=True, chosen=36, weighted=47, noun="convolutions"))
    assert some.endswith("36 of 47 convolutions run sparse kernels")
    assert "not observed" in sentence(gain, rounds=ROUNDS, kernels=Kernels(exist=True))
    short = compare(*timings(rng, rounds=3), seed=0)
    assert "raise --duration" in sentence(short, rounds=3, kernels=Kernels(exist=False))


def test_headline_names_each_batch_unless_none_differs():
    same = headline({1: "s", 8: "s"}, {1: 0.01, 8: 0.034}, {1: "no-difference", 8: "no-difference"})
    assert same == "No difference that this run could show at any of 2 batch sizes (A/A noise up to 3.4 %)."
    mixed = headline({1: "is so", 8: "is else"}, {1: 0.01, 8: 0.02}, {1: "sparse-faster", 8: "no-difference"})
    assert mixed == "Batch 1: is so. Batch 8: is else."
