"""The sentences of docs/results.md follow from the figures, and one seed settles nothing."""

import sys

import pytest
from helpers import REPOSITORY, nm2trt
from scipy.stats import ttest_1samp

sys.path.append(str(REPOSITORY / "benchmarks"))
from paper_grid import PATTERNS, Estimate, estimate, paired
from paper_page import every, sign_of, widening, within


def all_patterns(mean, half):
    return {pattern: Estimate(mean, half, 1 if half is None else 5) for pattern in PATTERNS}


def test_the_interval_is_students():
    values = {0: 90.1, 1: 90.4, 2: 89.9, 3: 90.6}
    low, high = ttest_1samp(list(values.values()), 0).confidence_interval(0.95)
    found = estimate(values)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert paired({0: 3.0, 1: 5.0, 7: 1.0}, {0: 1.0, 1: 2.0}).mean == 2.5
    assert estimate({}) is None
    assert estimate({3: 1.0}).text() == "1.00 (one seed)"


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        (all_patterns(0.3, 0.1), "Reproduced:"),
        (all_patterns(0.3, 0.4), "Seen in every mean, but not settled everywhere:"),
        (all_patterns(0.3, None), "Seen in every mean, but not settled everywhere:"),
        (all_patterns(0.3, 0.1) | {"1:16": Estimate(-0.2, 0.4, 5)}, "Not settled:"),
        (all_patterns(0.3, 0.1) | {"1:16": Estimate(-0.2, 0.1, 5)}, "Not reproduced:"),
        ({"2:4": Estimate(0.3, 0.1, 5)}, "Not settled: of 5 patterns, 1 have been run;"),
        ({}, "Not run."),
    ],
)
def test_a_finding_of_all_patterns(differences, verdict):
    assert every(differences, "SR-STE").startswith(verdict)


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ({0.5: {0: 0.1, 1: 0.1}, 0.25: {0: 0.3, 1: 0.3}, 0.0625: {0: 0.8, 1: 0.81}}, "Reproduced:"),
        ({0.5: {0: 0.1}, 0.25: {0: 0.3}, 0.0625: {0: 0.8}}, "Seen in the means, but not settled:"),
        ({0.5: {0: 0.1}, 0.25: {0: 0.9}, 0.0625: {0: 0.8}}, "Not settled:"),
        ({0.5: {0: 0.9}, 0.25: {0: 0.3}, 0.0625: {0: 0.1}}, "Not seen:"),
        ({0.5: {0: 0.8, 1: 0.81}, 0.0625: {0: 0.1, 1: 0.1}}, "Not reproduced:"),
        ({0.5: {0: 0.1}}, "Not run."),
    ],
)
def test_the_gap(gaps, verdict):
    assert widening(gaps).startswith(verdict)


@pytest.mark.parametrize(
    ("distance", "lower", "verdict"),
    [
        (Estimate(-0.02, 0.05, 5), False, "Reproduced;"),
        (Estimate(-0.5, 0.2, 5), False, "Not reproduced;"),
        (Estimate(0.5, 0.2, 5), True, "Not reproduced;"),
        (Estimate(0.5, 0.2, 5), False, "Reproduced;"),
        (Estimate(-0.1, 0.2, 5), False, "Not settled:"),
        (Estimate(-0.05, None, 1), False, "So it is, for one seed;"),
        (None, False, "Not run."),
    ],
)
def test_the_distance_from_dense(distance, lower, verdict):
    assert within(distance, lower=lower).startswith(verdict)
    assert sign_of(Estimate(0.0, None, 1)) == 0


def test_a_grid_of_real_runs_is_read_and_drawn(tmp_path, capsys, monkeypatch):
    """Two real, tiny runs of the grid; the rest says that it has not been run."""
    import paper
    from matplotlib.image import imread

    root = tmp_path / "grid" / "digits-mlp-2"
    for method in ("ste", "sr-ste"):
        options = ("--model", "mlp", "--epochs", 2, "--method", method, "--device", "cpu")
        assert nm2trt("train", *options, "-o", root / f"{method}-2of4-seed0").returncode == 0
    page = tmp_path / "docs" / "results.md"
    options = ["--data", "digits", "--model", "mlp", "--epochs", "2", "--seeds", "1", "--minutes", "0"]
    monkeypatch.setattr("sys.argv", ["paper.py", *options, "--folder", str(tmp_path / "grid"), "--write", str(page)])
    paper.main()
    text = page.read_text()
    assert text in capsys.readouterr().out
    assert "## Test accuracy, %" in text
    assert "Not settled: of 5 patterns, 1 have been run" in text
    assert "| 1:16 | not run | not run | not run | not run |" in text
    for picture in ("paper-accuracy.png", "paper-sad.png"):
        assert f"(images/{picture})" in text
        assert imread(page.parent / "images" / picture)[..., :3].std() > 0.01
