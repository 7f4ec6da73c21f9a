"""Runs beside each other: how much their masks moved (SAD) and what they scored, method against method."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nm2trt.artifacts import RunDocument
from nm2trt.artifacts.files import write_atomic
from nm2trt.errors import InputError
from nm2trt.report.curves import Rows, Score
from nm2trt.report.figure import ACCENT, AGAIN, DENSE, INK, SPARSE, house_style, new_figure, note, png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = (SPARSE, ACCENT, DENSE, AGAIN, INK)
_DASHES = ("-", "--", ":", "-.")
_TOTAL = "total"


@dataclass(frozen=True, slots=True)
class RunCurves:
    """One run's records."""

    label: str
    metrics: Rows
    """Rows of metrics.jsonl."""
    sad: Rows
    """Rows of sad.csv, values as text."""
    score: Score

    def totals(self, column: str) -> list[tuple[int, float]]:
        """Step and value of one column of the rows that sum all layers."""
        return [(int(float(row["step"])), float(row[column])) for row in self.sad if str(row["layer"]) == _TOTAL]


def read_run_curves(folder: Path, label: str = "") -> RunCurves:
    """Read a finished run.

    Args:
        folder: Of `nm2trt train`.
        label: In the legend; empty takes method, pattern and, with SR-STE, lambda.

    Raises:
        InputError: There is no finished run, or its records cannot be read.
    """
    document = RunDocument.read(folder, hint="give the folder of a finished nm2trt train")
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [json.loads(line) for line in lines]
        with (folder / "sad.csv").open(encoding="utf-8", newline="") as file:
            # Runs recorded before 2026-11-27 name their columns "normalised".  # codespell:ignore
            file_lines = (line.replace("normalised", "normalized") for line in file)  # codespell:ignore
            sad = list(csv.DictReader(file_lines))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"its records cannot be read: {error}", where=folder, hint="train it again") from None
    for row in metrics:
        if "test_accuracy" in row:
            # As older runs call it.
            row["test_score"] = row.pop("test_accuracy")
    score = Score(document.result.score_name, document.result.score_better)
    return RunCurves(label or _label(document), metrics, sad, score)


def _label(document: RunDocument) -> str:
    words = [document.method, document.pattern or ""]
    if document.method == "sr-ste":
        words.append(f"\N{GREEK SMALL LETTER LAMDA} {document.config.get('decay', '')}")
    return " ".join(word for word in words if word)


def write_comparison_png(runs: Sequence[RunCurves], path: Path, *, title: str = "") -> None:
    """Write `comparison_figure` as a PNG, atomically."""
    write_atomic(path, png_bytes(comparison_figure(runs, title=title)))


def comparison_figure(runs: Sequence[RunCurves], *, title: str = "") -> Figure:
    """Draw flips a weight, SAD against the previous record, and the score over the steps, a line for each run.

    Args:
        runs: At least one; their scores are drawn together where they are of one kind.
        title: Printed above the panels.
    """
    with house_style():
        figure = new_figure(10.5, 3.6)
        flips, moved, scores = figure.subplots(1, 3)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
        flips.set_title("Mask flips a weight, summed over steps")
        moved.set_title("SAD since the record before, % of weights")
        draw_flips(flips, runs)
        for run, style in zip(runs, _styles(len(runs)), strict=True):
            points = run.totals("sad_previous_normalized")
            moved.plot([step for step, _ in points], [100 * value for _, value in points], marker=".", **style)
        moved.set_ylim(bottom=0)
        moved.set_xlabel("step")
        _scores(scores, runs)
        handles, labels = flips.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=min(len(runs), 5))
    return figure


def draw_flips(axes: Axes, runs: Sequence[RunCurves]) -> None:
    """Draw how often a weight has changed sides so far (SAD summed over optimizer steps), a line for each run."""
    if not any(run.sad for run in runs):
        note(axes, "no SAD: nothing was sparsified")
        return
    for run, style in zip(runs, _styles(len(runs)), strict=True):
        points = [(0, 0.0), *run.totals("flips_per_weight")]
        axes.plot([step for step, _ in points], [value for _, value in points], label=run.label, **style)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")


def _scores(axes: Axes, runs: Sequence[RunCurves]) -> None:
    kinds = list(dict.fromkeys(run.score for run in runs))
    if len(kinds) > 1:
        axes.set_title("Test score")
        note(axes, f"not comparable: {', '.join(kind.name for kind in kinds)}")
        return
    axes.set_title(f"Test {kinds[0].name}, %")
    for run, style in zip(runs, _styles(len(runs)), strict=True):
        epochs = [row for row in run.metrics if row.get("kind") == "epoch"]
        axes.plot(
            [int(row["step"]) for row in epochs],
            [100 * float(row["test_score"]) for row in epochs],
            marker=".",
            **style,
        )
    if kinds[0].better == "lower":
        axes.set_ylim(bottom=0)
        axes.set_ylabel("lower is better")
    axes.set_xlabel("step")


def _styles(count: int) -> list[dict[str, Any]]:
    return [
        {"color": _COLORS[index % len(_COLORS)], "linestyle": _DASHES[index // len(_COLORS) % len(_DASHES)]}
        for index in range(count)
    ]
