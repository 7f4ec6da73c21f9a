"""The curves are drawn from the rows as training writes them, also from poor ones."""

import csv
import io
import re

import numpy as np
import pytest
from matplotlib.image import imread

from nm2trt.report.curves import Score, curves_figure, curves_label, curves_svg, write_curves_png
from nm2trt.report.figure import COLORS

SAD_COLUMNS = ["step", "epoch", "layer", "weights", "sad_previous", "sad_previous_normalized", "flips_cumulative"]


def metrics_rows(epochs=3, steps_per_epoch=4):
    rows = []
    for step in range(1, epochs * steps_per_epoch + 1):
        rows.append({"kind": "step", "step": step, "epoch": step // steps_per_epoch, "loss": 2.0 / step, "lr": 0.1})
        if step % steps_per_epoch == 0:
            rows.append(
                {
                    "kind": "epoch",
                    "epoch": step // steps_per_epoch,
                    "step": step,
                    "train_loss": 2.0 / step,
                    "test_loss": 2.1 / step,
                    "test_score": 1 - 1 / step,
                }
            )
    return rows


def sad_rows(layers=("conv.weight", "fc.weight"), steps=(1, 2, 4, 8)):
    return [
        {"step": step, "epoch": 0, "layer": layer, "weights": 64, "sad_previous_normalized": 0.5 / step}
        for step in steps
        for layer in (*layers, "total")
    ]


def as_csv_text(rows):
    """As they come back from sad.csv: every value is text."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, SAD_COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return list(csv.DictReader(io.StringIO(buffer.getvalue())))


def test_lines_hold_the_rows_values():
    figure = curves_figure(metrics_rows(), sad_rows())
    loss, accuracy, sad = figure.axes[:3]
    lines = {line.get_label(): line for line in loss.lines}
    assert set(lines) == {"batch", "train", "test"}
    np.testing.assert_allclose(lines["test"].get_xydata(), [(s, 2.1 / s) for s in (4, 8, 12)])
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [75, 87.5, 100 * (1 - 1 / 12)])
    mesh = sad.collections[0].get_array()
    np.testing.assert_allclose(np.asarray(mesh).reshape(2, 4), [[50, 25, 12.5, 6.25]] * 2)


def test_text_from_csv_draws_the_same():
    rows = sad_rows()
    assert curves_svg(metrics_rows(), as_csv_text(rows)) == curves_svg(metrics_rows(), rows)


def test_png_is_a_picture_and_replaces_atomically(tmp_path):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    write_curves_png(metrics_rows(), sad_rows(), path, "digits, $2:4")
    picture = imread(path)
    assert picture.shape[0] > 300
    assert picture.shape[1] > 1000
    assert picture[..., :3].std() > 0.02
    assert [found.name for found in tmp_path.iterdir()] == ["curves.png"]


def test_same_rows_same_bytes(tmp_path):
    for name in "ab":
        write_curves_png(metrics_rows(), sad_rows(), tmp_path / name, "t")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("metrics", "sad"),
    [
        ([], []),
        (metrics_rows(epochs=1, steps_per_epoch=1), []),
        (metrics_rows(), sad_rows(steps=(5,))),
        ([row for row in metrics_rows() if row["kind"] == "epoch"], sad_rows(layers=[f"l{i}" for i in range(80)])),
        ([{**row, "test_score": float("nan")} for row in metrics_rows() if row["kind"] == "epoch"], []),
    ],
)
def test_poor_rows_are_drawn_too(metrics, sad, tmp_path):
    write_curves_png(metrics, sad, tmp_path / "c.png", "")
    assert "<svg" in curves_svg(metrics, sad)


def test_svg_takes_colors_fonts_and_size_from_the_page():
    markup = curves_svg(metrics_rows(), sad_rows(layers=["<script>alert(1)</script>", "a&b"]), name="here")
    assert "<script" not in markup
    assert "http" not in markup
    assert "font-family" not in markup
    for name in ("ink", "muted", "grid", "dense", "sparse"):
        assert f"var(--fig-{name}, {COLORS[name]})" in markup
    bare = re.sub(r"var\([^)]*\)", "", re.sub(r"base64,[^\"]*", "", markup))
    assert not [color for color in COLORS.values() if color in bare]
    heads = re.findall(r"<svg[^>]*>", markup)
    assert len(heads) == 3
    assert all("viewBox" in head and "width=" not in head and "aria-label" in head for head in heads)
    ids = re.findall(r' id="([^"]+)"', markup)
    assert len(ids) == len(set(ids))
    assert all(found.startswith("here") for found in ids)
    assert set(re.findall(r'href="#([^"]+)"', markup)) <= set(ids)


def test_the_score_keeps_its_name_and_direction():
    score = Score("phoneme error rate", "lower")
    axes = curves_figure(metrics_rows(), sad_rows(), score=score).axes[1]
    assert axes.get_title(loc="left") == "Test phoneme error rate, %"
    assert axes.get_ylabel() == "lower is better"
    assert axes.get_ylim()[0] == 0
    assert "test phoneme error rate 91.67 % at the end" in curves_label(metrics_rows(), [], score=score)
    assert "ccuracy" not in curves_svg(metrics_rows(), sad_rows(), score=score)
