"""Live records in TensorBoard's event files (extra `tensorboard`), beside metrics.jsonl and sad.csv."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nm2trt.errors import MachineError
from nm2trt.training.sad import Sad

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
"""Inside the run's folder."""


class Recorder(Protocol):
    """Told of a run's records as they are made."""

    def step(self, step: int, loss: float, rate: float) -> None:
        """Record one optimizer step: the batch's loss and the learning rate."""

    def epoch(self, row: Mapping[str, Any], score_name: str, sad: Sad) -> None:
        """Record the end of an epoch; `row` is that of metrics.jsonl."""

    def close(self) -> None:
        """Write out what is buffered."""


class NoRecorder:
    """Where no TensorBoard was asked for, and in all processes but the first."""

    def step(self, step: int, loss: float, rate: float) -> None:
        """See `Recorder`."""

    def epoch(self, row: Mapping[str, Any], score_name: str, sad: Sad) -> None:
        """See `Recorder`."""

    def close(self) -> None:
        """See `Recorder`."""


def check_tensorboard() -> None:
    """Refuse before any work is done.

    Raises:
        MachineError: The package is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise MachineError(
            "TensorBoard is not installed", where="--tensorboard", hint="pip install 'nm2trt[tensorboard]'"
        )


class TensorBoard:
    """Scalars below `RUN/tensorboard`.

    `loss/batch`, `loss/train`, `loss/test`, `score/NAME`, `learning_rate`; and for the total and every sparse layer
    `sad_previous/LAYER` and `sad_start/LAYER` (mask bits that differ from the previous record and from the first
    mask, a weight) and `flip_rate/LAYER` (flips a weight and optimizer step since the previous record, Hu et al. 2024);
    `sad_previous_bits/total` is SAD as the paper defines it.

    Args:
        folder: Of the run.
        after_step: The step that the run goes on from; TensorBoard drops what a killed run wrote beyond it.
        before: The last record before that, whose flips the next rate starts from; None at the start.
    """

    def __init__(self, folder: Path, *, after_step: int, before: Sad | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: SummaryWriter = SummaryWriter(str(folder / FOLDER), purge_step=after_step + 1, flush_secs=10)
        self._before = before

    def step(self, step: int, loss: float, rate: float) -> None:
        """See `Recorder`."""
        self._scalars(step, {"loss/batch": loss, "learning_rate": rate})

    def epoch(self, row: Mapping[str, Any], score_name: str, sad: Sad) -> None:
        """See `Recorder`."""
        values = {
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
        self._scalars(int(row["step"]), values)
        self._writer.flush()

    def close(self) -> None:
        """See `Recorder`."""
        self._writer.close()

    def _flips_before(self, now: Sad) -> tuple[dict[str, int], int]:
        """Flips of every layer at the record before, and its step."""
        if self._before is None:
            return {}, 0
        if now.total.flips < self._before.total.flips:
            # The count starts anew where `asp` prunes.
            return {}, self._before.step
        return {layer.layer: layer.flips for layer in [*self._before.layers, self._before.total]}, self._before.step

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
