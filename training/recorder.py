"""Who is told of a run's records while it goes on, and the scalars that they are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from nm2trt.training.sad import Sad

TrackerName = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]  # fmt: skip
"""As accelerate calls them."""


class Recorder(Protocol):
    """Told of a run's records as they are made."""

    def step(self, step: int, loss: float, rate: float) -> None:
        """Record one optimizer step: the batch's loss and the learning rate."""

    def epoch(self, row: Mapping[str, Any], score_name: str, sad: Sad) -> None:
        """Record the end of an epoch; `row` is that of metrics.jsonl."""

    def close(self) -> None:
        """Write out what is buffered."""


class NoRecorder:
    """Where no tracker was asked for, and in all processes but the first."""

    def step(self, step: int, loss: float, rate: float) -> None:
        """See `Recorder`."""

    def epoch(self, row: Mapping[str, Any], score_name: str, sad: Sad) -> None:
        """See `Recorder`."""

    def close(self) -> None:
        """See `Recorder`."""


def step_scalars(loss: float, rate: float) -> dict[str, float]:
    """Scalars of one optimizer step by name: `loss/batch` and `learning_rate`."""
    return {"loss/batch": loss, "learning_rate": rate}


class EpochScalars:
    """Scalars of an epoch's end by name.

    `loss/train`, `loss/test`, `score/NAME`; and for the total and every sparse layer `sad_previous/LAYER` and
    `sad_start/LAYER` (mask bits that differ from the previous record and from the first mask, a weight) and
    `flip_rate/LAYER` (flips a weight and optimizer step since the previous record, Hu et al. 2024);
    `sad_previous_bits/total` is SAD as the paper defines it.

    Args:
        before: The last record of the run so far, whose flips the next rate starts from; None at the start.
    """

    def __init__(self, before: Sad | None) -> None:
        self._before = before

    def take(self, row: Mapping[str, Any], score_name: str, sad: Sad) -> dict[str, float]:
        """Give the scalars of the next epoch; `row` is that of metrics.jsonl."""
        values: dict[str, float] = {
            "loss/train": row["train_loss"],
            "loss/test": row["test_loss"],
            f"score/{score_name}": row["test_score"],
            "sad_previous_bits/total": sad.total.previous,
        }
        before, since = self._flips_before(sad)
        steps = max(1, sad.step - since)
        for layer in [*sad.layers, sad.total]:
            values[f"sad_previous/{layer.layer}"] = layer.previous_normalized
            values[f"sad_start/{layer.layer}"] = layer.start_normalized
            values[f"flip_rate/{layer.layer}"] = (layer.flips - before.get(layer.layer, 0)) / layer.weights / steps
        self._before = sad
        return values

    def _flips_before(self, now: Sad) -> tuple[dict[str, int], int]:
        """Flips of every layer at the record before, and its step."""
        if self._before is None:
            return {}, 0
        if now.total.flips < self._before.total.flips:
            # The count starts anew where `asp` prunes.
            return {}, self._before.step
        return {layer.layer: layer.flips for layer in [*self._before.layers, self._before.total]}, self._before.step
