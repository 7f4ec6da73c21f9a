"""SAD, the sparse architecture divergence of the SR-STE paper: how many mask bits differ between two moments.

SAD between i and j is || E_j - E_i ||_1; one swap inside a group counts 2. Normalized: divided by the number of
weights. The flip count sums SAD over consecutive optimizer steps (the flip rate of Hu et al., ICML 2024, is its
share per step).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass

COLUMNS = (
    "step",
    "epoch",
    "layer",
    "weights",
    "sad_previous",
    "sad_previous_normalized",
    "sad_start",
    "sad_start_normalized",
    "flips_cumulative",
    "flips_per_weight",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSad:
    """Mask bits of one layer that differ."""

    layer: str
    weights: int
    previous: int
    """Against the previous record."""
    start: int
    """Against the mask that training began with."""
    flips: int
    """Summed over all optimizer steps so far."""

    @property
    def previous_normalized(self) -> float:
        """Share of the layer's weights."""
        return self.previous / self.weights

    @property
    def start_normalized(self) -> float:
        """Share of the layer's weights."""
        return self.start / self.weights

    @property
    def flips_per_weight(self) -> float:
        """Mean number of times that a weight changed sides."""
        return self.flips / self.weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Sad:
    """One record of all sparse layers."""

    step: int
    layers: list[LayerSad]

    @property
    def total(self) -> LayerSad:
        """The sum over layers, under the name "total"."""
        return LayerSad(
            layer="total",
            weights=sum(layer.weights for layer in self.layers),
            previous=sum(layer.previous for layer in self.layers),
            start=sum(layer.start for layer in self.layers),
            flips=sum(layer.flips for layer in self.layers),
        )

    def rows(self, epoch: float) -> Iterable[dict[str, object]]:
        """Rows of sad.csv in the order of `COLUMNS`, the total last."""
        for layer in [*self.layers, self.total]:
            values = (
                self.step,
                epoch,
                layer.layer,
                layer.weights,
                layer.previous,
                layer.previous_normalized,
                layer.start,
                layer.start_normalized,
                layer.flips,
                layer.flips_per_weight,
            )
            yield dict(zip(COLUMNS, values, strict=True))


def sad_csv(rows: Iterable[dict[str, object]]) -> str:
    """sad.csv of rows as `Sad.rows` makes them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
