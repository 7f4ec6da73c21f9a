"""Runs drawn beside each other hold the rows of their own files."""

import csv
import json

import numpy as np
import pytest
from helpers import REPOSITORY
from matplotlib.image import imread
from run_folders import make_run

from nm2trt.errors import InputError
from nm2trt.report.compared_runs import RunCurves, comparison_figure, read_run_curves
from nm2trt.report.curves import Score

COLUMNS = ("step", "layer", "sad_previous_normalized", "flips_per_weight")


def write_records(folder, factor):
    rows = [{"kind": "step", "step": 5, "loss": 1.0}]
    rows += [{"kind": "epoch", "step": step, "test_score": 0.5 + factor * step / 100} for step in (10, 20, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "sad.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for step in (10, 20, 30):
            for layer, share in (("conv.weight", 9.0), ("total", 1.0)):
                writer.writerow((step, layer, share * factor / step, share * factor * step))


@pytest.fixture
def runs(tmp_path):
    for name, factor in (("one", 0.5), ("two", 1.0)):
        make_run(tmp_path / name)
        write_records(tmp_path / name, factor)
    return [tmp_path / "one", tmp_path / "two"]


def test_lines_hold_the_totals_of_each_run(runs):
    figure = comparison_figure([read_run_curves(run, run.name) for run in runs])
    flips, moved, scores = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    for index, factor in enumerate((0.5, 1.0)):
        expected = [(step, factor * step) for step in (0, 10, 20, 30)]
        np.testing.assert_allclose(flips.lines[index].get_xydata(), expected)
        np.testing.assert_allclose(moved.lines[index].get_ydata(), [100 * factor / step for step in (10, 20, 30)])
        np.testing.assert_allclose(scores.lines[index].get_ydata(), [50 + factor * step for step in (10, 20, 30)])
    assert scores.get_title(loc="left") == "Test accuracy, %"


def test_records_of_the_former_spelling_are_read(runs):
    before = [row for run in runs for row in read_run_curves(run).sad]
    for run in runs:
        table = run / "sad.csv"
        table.write_text(table.read_text().replace("normalized", "normalised"))  # codespell:ignore
        document = (run / "run.json").read_text()
        (run / "run.json").write_text(document.replace("normalized", "normalised"))  # codespell:ignore
    assert [row for run in runs for row in read_run_curves(run).sad] == before


def test_scores_of_two_kinds_share_no_axis():
    rows = [{"kind": "epoch", "step": 1, "test_score": 0.1}]
    runs = [RunCurves("a", rows, [], Score()), RunCurves("b", rows, [], Score("error rate", "lower"))]
    figure = comparison_figure(runs)
    assert not figure.axes[2].lines
    assert "not comparable" in figure.axes[2].texts[0].get_text()
    assert comparison_figure(runs[1:]).axes[2].get_ylabel() == "lower is better"


def test_many_runs_are_told_apart():
    runs = [
        RunCurves(str(index), [], [{"step": 1, "layer": "total", **dict.fromkeys(COLUMNS[2:], index)}], Score())
        for index in range(12)
    ]
    lines = comparison_figure(runs).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12


@pytest.mark.parametrize("damage", ["missing", "no JSON", "no run"])
def test_what_cannot_be_read_names_the_run(runs, damage):
    if damage == "missing":
        (runs[0] / "sad.csv").unlink()
    elif damage == "no JSON":
        (runs[0] / "metrics.jsonl").write_text("{")
    else:
        (runs[0] / "run.json").unlink()
    with pytest.raises(InputError, match="one"):
        read_run_curves(runs[0])


def test_the_example_draws_a_picture(runs, tmp_path, monkeypatch, capsys):
    import runpy

    script = str(REPOSITORY / "examples" / "compare_runs.py")
    monkeypatch.setattr("sys.argv", [script, *map(str, runs), "-o", str(tmp_path / "c.png")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(script, run_name="__main__")
    assert stop.value.code == 0
    assert imread(tmp_path / "c.png")[..., :3].std() > 0.02
    monkeypatch.setattr("sys.argv", [script, str(tmp_path / "none"), "-o", str(tmp_path / "d.png")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(script, run_name="__main__")
    assert stop.value.code == 3
    assert "none" in capsys.readouterr().err
