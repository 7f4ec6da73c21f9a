"""The float network against a quantised one, on the same samples: score, cosine, signal to quantisation noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from nm2trt.artifacts.calibration import Agreement
from nm2trt.calibration.feeds import Batch
from nm2trt.calibration.sessions import Array, Runner
from nm2trt.data.tasks import better_of
from nm2trt.errors import InputError

_KEPT_BYTES = 256 * 2**20
_NOISELESS_DB = 200.0


class Judge:
    """Compares quantised models with one float model; the float outputs are computed once, if they are small.

    Args:
        reference: The float model.
        batches: Gives the samples anew at every call.
        task: Scores outputs against labels (`nm2trt.data.Task`), or None.
        where: For error lines.
    """

    def __init__(
        self, reference: onnx.ModelProto, batches: Callable[[], Iterable[Batch]], task: Any, where: object
    ) -> None:
        self._reference = Runner(reference, where)
        self._batches = batches
        self._task = task
        self._where = where
        self._kept: list[list[Array]] | None = []

    def agreement(self, quantised: onnx.ModelProto, progress: Callable[[int], None] = lambda _: None) -> Agreement:
        """Run all samples through both.

        Raises:
            InputError: There is no sample, or a model cannot run.
        """
        runner = Runner(quantised, self._where)
        sums = _Sums()
        known = self._kept if self._kept else None
        for number, batch in enumerate(self._batches()):
            before = known[number] if known else self._reference.run(batch.feed)
            if known is None:
                self._keep(before)
            sums.add(before, runner.run(batch.feed), batch, self._task)
            progress(sums.samples)
        if not sums.samples:
            raise InputError(
                "no sample is left to hold out", where="--data", mend="give more samples, or fewer --samples"
            )
        return sums.agreement(self._task)

    def _keep(self, outputs: list[Array]) -> None:
        if self._kept is None:
            return
        self._kept.append(outputs)
        if sum(array.nbytes for kept in self._kept for array in kept) > _KEPT_BYTES:
            self._kept = None


@dataclass(slots=True)
class _Sums:
    samples: int = 0
    cosines: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    same: int = 0
    positions: int = 0
    points: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    """Won before, won after, to be had."""

    def add(self, before: list[Array], after: list[Array], batch: Batch, task: Any) -> None:
        self.samples += batch.count
        flat = [_flat(outputs, batch.count) for outputs in (before, after)]
        a, b = flat
        difference = a - b
        self.signal += float((a * a).sum())
        self.noise += float((difference * difference).sum())
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        dots = (a * b).sum(axis=1)
        # Two outputs of zeros agree; one alone does not.
        equal = np.all(a == b, axis=1)
        cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
        self.cosines += float(np.where(equal, 1.0, cosines).sum())
        if before[0].ndim >= 2 and before[0].shape[-1] > 1:
            agree = before[0].argmax(axis=-1) == after[0].argmax(axis=-1)
            self.same += int(agree.sum())
            self.positions += agree.size
        if task is not None and batch.labels is not None:
            self.points += _points(before[0], after[0], batch.labels, task)

    def agreement(self, task: Any) -> Agreement:
        scored = task is not None and self.points[2] > 0
        noiseless = self.noise == 0 or self.signal == 0
        sqnr = _NOISELESS_DB if noiseless else 10 * math.log10(self.signal / self.noise)
        return Agreement(
            samples=self.samples,
            score_name=str(task.score_name) if scored else None,
            score_better=better_of(task) if scored else "higher",
            score_before=float(self.points[0] / self.points[2]) if scored else None,
            score_after=float(self.points[1] / self.points[2]) if scored else None,
            cosine=self.cosines / self.samples,
            sqnr_db=min(sqnr, _NOISELESS_DB),
            argmax_agreement=self.same / self.positions if self.positions else None,
        )


def _flat(outputs: list[Array], count: int) -> NDArray[np.float64]:
    """All outputs of each sample in one row; outputs without a batch axis count once for the whole batch."""
    rows = [
        array.reshape(count, -1)
        if array.ndim and array.shape[0] == count
        else np.tile(array.reshape(1, -1), (count, 1))
        for array in outputs
    ]
    return np.concatenate([row.astype(np.float64) for row in rows], axis=1)


def _points(before: Array, after: Array, labels: Any, task: Any) -> NDArray[np.float64]:
    import torch

    with torch.inference_mode():
        first, second = (task.score(torch.from_numpy(np.array(array)), labels).sum(dim=0) for array in (before, after))
    return np.array([float(first[0]), float(second[0]), float(first[1])])
