"""The statistics of docs/results.md against scipy and simulation; its sentences follow from the figures."""

import sys

import numpy as np
import pytest
from helpers import REPOSITORY
from scipy.stats import bootstrap, ttest_1samp

sys.path.append(str(REPOSITORY / "benchmarks"))
import paper
from paper_grid import CellResult, read_results, write_results
from paper_statistics import (
    Estimate,
    detectable,
    judge_all_higher,
    judge_sign,
    judge_within,
    paired,
    slopes,
)

VALUES = (0.31, -0.12, 0.44, 0.27, 0.05)


def test_the_interval_is_students():
    low, high = ttest_1samp(VALUES, 0).confidence_interval(0.95)
    found = Estimate(VALUES)
    assert (found.mean - found.half(), found.mean + found.half()) == pytest.approx((low, high))
    assert paired({0: 3.0, 1: 5.0, 7: 1.0}, {0: 1.0, 1: 2.0}).values == (2.0, 3.0)
    assert paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize("count", [5, 12])
def test_the_bootstrap_is_scipys(count):
    values = np.random.default_rng(3).normal(size=count)
    oracle = bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1))
    assert Estimate(tuple(values)).bootstrap() == pytest.approx(tuple(oracle.confidence_interval), abs=0.03)


def test_a_detectable_difference_is_found_four_times_of_five():
    shift = detectable(2.0, 5)
    samples = np.random.default_rng(0).normal(shift, 2.0, size=(20_000, 5))
    assert (ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.015)


def about(mean, spread=0.01):
    return Estimate(tuple(mean + spread * one for one in (-2, -1, 0, 1, 2)))


@pytest.mark.parametrize(
    ("differences", "end"),
    [
        ({"2:4": about(0.3), "1:4": about(0.2)}, "shown"),
        ({"2:4": about(0.3)}, "open"),
        ({"2:4": about(0.3), "1:4": about(0.2, 1.0)}, "open"),
        ({"2:4": about(0.3), "1:4": about(-0.2)}, "refuted here"),
        ({"2:4": Estimate((0.3,)), "1:4": Estimate((-9.0,))}, "open"),
        ({}, "open"),
    ],
)
def test_a_claim_about_every_pattern(differences, end):
    assert judge_all_higher(differences, 2) == end


def test_a_gap_that_widens():
    gaps = {0.5: {0: 0.1, 1: 0.2}, 0.25: {0: 0.3, 1: 0.4}, 0.0625: {0: 0.7, 1: 0.8, 2: 5.0}}
    assert slopes(gaps).values == pytest.approx((0.2, 0.2))
    assert slopes({0.5: {0: 0.1}}) is None
    assert judge_sign(about(0.2)) == "shown"
    assert judge_sign(about(-0.2)) == "refuted here"
    assert judge_sign(about(0.0)) == judge_sign(None) == "open"


def test_the_distance_from_dense():
    assert judge_within(about(0.02), 0.1) == "shown"
    assert judge_within(about(0.5), 0.1) == "refuted here"
    assert judge_within(about(0.1, 0.1), 0.1) == judge_within(Estimate((0.0,)), 0.1) == "open"


@pytest.mark.slow
def test_real_runs_are_kept_not_repeated_and_written(tmp_path):
    """One seed of the whole grid with a tiny network, in two processes."""
    folder, page = tmp_path / "grid", tmp_path / "docs" / "results.md"
    options = ["--networks", "digits", "--seeds", "1", "--epochs", "2", "--jobs", "2", "--folder", str(folder)]
    page.parent.mkdir()
    assert paper.main([*options, "--budget-s", "300"]) == 0
    cells = {path: path.stat().st_mtime_ns for path in folder.glob("digits/*.json")}
    assert len(cells) >= 16
    assert paper.main([*options, "--budget-s", "60", "--write", str(page)]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("digits/*.json")} == cells
    text = page.read_text()
    assert "SR-STE at or above STE at every pattern: **open**" in text
    again = tmp_path / "docs" / "again.md"
    assert paper.main(["--from", str(page.parent / "results.json"), "--write", str(again)]) == 0
    assert again.read_text().replace("again.md", "results.md") == text


def cell(method, seed, score, device):
    return CellResult(
        network="letters",
        method=method,
        pattern="2:4",
        seed=seed,
        epochs=4,
        steps=628,
        score_name="phoneme error rate",
        score_better="lower",
        score=score,
        flips_per_weight=0.5,
        seconds=60.0,
        device=device,
        parameters=1000,
        train_samples=100,
        test_samples=10,
        settings={"model": "encoder-small", "batch_size": 64, "optimizer": "adamw", "lr": 2e-3},
    )


def test_runs_are_compared_on_their_own_device_only(tmp_path):
    """On the GPU STEP is ahead by 5 points, on the CPU behind by 2; neither is set against the other's SR-STE."""
    gpu, cpu = "1 x NVIDIA H200", "cpu, 1 thread"
    noise = (0.0, 0.001, -0.001)
    found = [cell("sr-ste", seed, 0.20 + more, gpu) for seed, more in enumerate(noise)]
    found += [cell("step", seed, 0.15 + 2 * more, gpu) for seed, more in enumerate(noise)]
    found += [cell("sr-ste", seed, 0.40 + more, cpu) for seed, more in enumerate(noise)]
    found += [cell("step", seed, 0.42 + 2 * more, cpu) for seed, more in enumerate(noise)]
    write_results(tmp_path / "all.json", found)
    page = tmp_path / "results.md"
    assert paper.main(["--from", str(tmp_path / "all.json"), "--write", str(page)]) == 0
    _, on_gpu, on_cpu = page.read_text().split("\n## ")
    assert gpu in on_gpu
    assert "**ahead** at 2:4. 2:4 +5.00" in on_gpu
    assert cpu in on_cpu
    assert "**behind** at 2:4. 2:4 -2.00" in on_cpu
    assert "What the paper found" not in on_cpu
    files = {name: read_results(tmp_path / name) for name in ("results.json", "results-cpu.json")}
    assert [len(cells) for cells in files.values()] == [6, 6]
    again = tmp_path / "again.md"
    assert paper.main(["--from", *(str(tmp_path / name) for name in files), "--write", str(again)]) == 0
    assert again.read_text().replace("again.md", "results.md") == page.read_text()
