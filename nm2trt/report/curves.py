"""Training curves: loss, score, and the sparse architecture divergence (SAD) of every layer over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nm2trt.artifacts.files import write_atomic
from nm2trt.report.figure import DENSE, INK, MUTED, SPARSE, house_style, new_figure, note, png_bytes, svg_markup, tint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

_TOTAL = "total"
_MAX_NAMED_LAYERS = 24


@dataclass(frozen=True, slots=True)
class Score:
    """What a run's `test_score` is, a share."""

    name: str = "accuracy"
    better: Literal["higher", "lower"] = "higher"


ACCURACY = Score()


def write_curves_png(metrics: Rows, sad: Rows, path: Path, title: str, *, score: Score = ACCURACY) -> None:
    """Write `curves.png`, atomically.

    Args:
        metrics: Rows of metrics.jsonl: `{"kind": "epoch", "epoch", "step", "train_loss", "test_loss",
            "test_score", ...}` and `{"kind": "step", "step", "loss", ...}`. The score is a share, 0 to 1.
        sad: Rows of sad.csv, values as numbers or text; the layer `total` is the sum. May be empty.
        path: The file to write.
        title: Printed above the panels.
        score: What the score is.
    """
    write_atomic(path, png_bytes(curves_figure(metrics, sad, title=title, score=score)))


def curves_svg(metrics: Rows, sad: Rows, *, score: Score = ACCURACY, name: str = "curves") -> str:
    """Draw the same panels for a report: one `<svg>` each, since three in a row are unreadable on a phone.

    Args:
        metrics: As `write_curves_png`.
        sad: As `write_curves_png`.
        score: As `write_curves_png`.
        name: Unique on the page.

    Returns:
        Markup of a `<div class="panels">`; the page puts its children side by side where there is room.
    """
    drawings = []
    labels = (
        curves_label(metrics, sad, score=score),
        f"Test {score.name} over the steps.",
        "Sparse architecture divergence of every layer over the steps.",
    )
    for index, label in enumerate(labels):
        with house_style():
            figure = new_figure(3.9, 2.8)
            axes = figure.subplots()
            if index == 0:
                _loss(axes, metrics)
            elif index == 1:
                _score(axes, metrics, score)
            else:
                _sad(axes, sad)
        drawings.append(svg_markup(figure, name=f"{name}{index}", label=label))
    return f'<div class="panels">{"".join(drawings)}</div>'


def curves_figure(metrics: Rows, sad: Rows, *, title: str = "", score: Score = ACCURACY) -> Figure:
    """Draw three panels side by side; arguments as `write_curves_png`."""
    with house_style():
        figure = new_figure(10.5, 3.3)
        panels = figure.subplots(1, 3, width_ratios=(1.0, 1.0, 1.25))
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
        _loss(panels[0], metrics)
        _score(panels[1], metrics, score)
        _sad(panels[2], sad)
    return figure


def curves_label(metrics: Rows, sad: Rows, *, score: Score = ACCURACY) -> str:
    """Say in one sentence where the curves end."""
    epochs = _epochs(metrics)
    if not epochs:
        return "Training curves: no epoch was recorded."
    last = epochs[-1]
    loss = last["test_loss"]
    shown = "no number" if loss is None else f"{float(loss):.3f}"
    words = f"Training curves over {int(last['step'])} steps: test loss {shown}"
    words += f", test {score.name} {100 * float(last['test_score']):.2f} % at the end"
    layers = {str(row["layer"]) for row in sad} - {_TOTAL}
    return f"{words}; SAD of {len(layers)} layers." if layers else f"{words}."


def _epochs(metrics: Rows) -> list[Mapping[str, Any]]:
    return [row for row in metrics if row.get("kind") == "epoch"]


def _column(rows: Rows, key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Values of one column; what a row lacks is NaN, which a line skips."""
    return np.array([np.nan if row.get(key) in (None, "") else float(row[key]) for row in rows], dtype=np.float64)


def _loss(axes: Axes, metrics: Rows) -> None:
    """Loss over the steps."""
    axes.set_title("Loss")
    steps = [row for row in metrics if row.get("kind") == "step"]
    epochs = _epochs(metrics)
    if not steps and not epochs:
        note(axes, "no step was recorded")
        return
    if steps:
        axes.plot(_column(steps, "step"), _column(steps, "loss"), color=DENSE, linewidth=0.8, alpha=0.5, label="batch")
    if epochs:
        marker = "o" if len(epochs) == 1 else ""
        at = _column(epochs, "step")
        axes.plot(at, _column(epochs, "train_loss"), color=DENSE, marker=marker, label="train")
        axes.plot(at, _column(epochs, "test_loss"), color=SPARSE, marker=marker, label="test")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.legend(loc="upper right")


def _score(axes: Axes, metrics: Rows, score: Score) -> None:
    """Test score over the steps."""
    axes.set_title(f"Test {score.name}, %")
    epochs = _epochs(metrics)
    if not epochs:
        note(axes, "no epoch was recorded")
        return
    step, percent = _column(epochs, "step"), 100 * _column(epochs, "test_score")
    axes.plot(step, percent, color=SPARSE, marker="o" if len(epochs) == 1 else "")
    axes.margins(y=0.15)
    axes.set_xlabel("step")
    if score.better == "lower":
        axes.set_ylim(bottom=0)
        axes.set_ylabel("lower is better")
    if np.isfinite(percent[-1]):
        # Beside the curve's end, on the side that it does not come from.
        below = score.better == "lower"
        axes.annotate(
            f"{percent[-1]:.2f}",
            (step[-1], percent[-1]),
            xytext=(0, -5 if below else 5),
            textcoords="offset points",
            ha="right",
            va="top" if below else "bottom",
            color=SPARSE,
            fontsize=8.5,
        )


def _sad(axes: Axes, sad: Rows) -> None:
    """Sparse architecture divergence of every layer over the steps."""
    axes.set_title("SAD per layer, % of weights")
    rows = [row for row in sad if str(row["layer"]) != _TOTAL]
    if not rows:
        note(axes, "no SAD: nothing was sparsified")
        return
    layers = list(dict.fromkeys(str(row["layer"]) for row in rows))
    steps = sorted({int(float(row["step"])) for row in rows})
    grid = np.full((len(layers), len(steps)), np.nan)
    row_of = {layer: index for index, layer in enumerate(layers)}
    column_of = {step: index for index, step in enumerate(steps)}
    for row, percent in zip(rows, 100 * _column(rows, "sad_previous_normalized"), strict=True):
        grid[row_of[str(row["layer"])], column_of[int(float(row["step"]))]] = percent
    # A record speaks of the steps up to it, so its cell ends there.
    edges = np.array([steps[0] - (steps[1] - steps[0] if len(steps) > 1 else 1), *steps], dtype=np.float64)
    mesh = axes.pcolormesh(
        edges, np.arange(len(layers) + 1), np.ma.masked_invalid(grid), cmap=tint(SPARSE), vmin=0, rasterized=True
    )
    axes.invert_yaxis()
    axes.grid(visible=False)
    every = -(-len(layers) // _MAX_NAMED_LAYERS)
    axes.set_yticks(
        np.arange(0, len(layers), every) + 0.5,
        [_short(layer) for layer in layers[::every]],
        fontsize=max(5.0, 8.0 - 0.12 * len(layers[::every])),
    )
    axes.set_xlabel("step")
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, fraction=0.05, aspect=28)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=MUTED, labelsize=7.5, length=0)


def _short(layer: str) -> str:
    name = layer.removesuffix(".weight")
    # Both ends: the block's number stands in front, the layer's role at the end.
    return name if len(name) <= 24 else f"{name[:10]}…{name[-13:]}"
