"""The network as it was given against a quantized one, on the same samples: score, cosine, signal to noise.

Each output is compared by itself, by the rules of `nm2trt.ort`; the figures of the whole are those of its worst output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from nm2trt.artifacts.calibration import Agreement, OutputAgreement
from nm2trt.calibration.feeds import Batch
from nm2trt.calibration.sessions import Array, Feed, Runner
from nm2trt.data.tasks import better_of
from nm2trt.errors import InputError
from nm2trt.ort import OutputComparison, Reason, as_arrays, compare_outputs, describe_comparison, merge_comparisons
from nm2trt.ort.similarity import comparable_values, cosines_of_rows

_KEPT_BYTES = 256 * 2**20
_NOISELESS_DB = 200.0


Network = Callable[[Feed], dict[str, Array]]
"""Runs one batch; outputs by name."""


class NetworkChecker:
    """Compares changed networks with one reference; the reference's outputs are computed once, if they are small.

    Args:
        reference: The network as it was given.
        batches: Gives the samples anew at every call.
        task: Scores the first output against labels (`nm2trt.data.Task`), or None.
        changed: What was done to the networks that are compared, in a word.
    """

    def __init__(self, reference: Network, batches: Callable[[], Iterable[Batch]], task: Any, changed: str) -> None:
        self._run_reference = reference
        self._batches = batches
        self._task = task
        self._changed = changed
        self._kept: list[dict[str, Array]] | None = []

    def compare(self, network: Network, progress: Callable[[int], None] = lambda _: None) -> Agreement:
        """Run all samples through both.

        Raises:
            InputError: There is no sample, or a network cannot run.
        """
        sums = _Sums()
        known = self._kept if self._kept else None
        for number, batch in enumerate(self._batches()):
            before = known[number] if known else self._run_reference(batch.feed)
            if known is None:
                self._keep(before)
            sums.add(before, network(batch.feed), batch, self._task)
            progress(sums.samples)
        if not sums.samples:
            raise InputError(
                "no sample is left to hold out", where="--data", hint="give more samples, or fewer --samples"
            )
        return sums.agreement(self._task, self._changed)

    def _keep(self, outputs: dict[str, Array]) -> None:
        if self._kept is None:
            return
        self._kept.append(outputs)
        if sum(array.nbytes for kept in self._kept for array in kept.values()) > _KEPT_BYTES:
            self._kept = None


class OutputChecker(NetworkChecker):
    """The same for ONNX models, run by ONNX Runtime.

    Args:
        reference: The model as it was given: the file itself, whose bytes ONNX Runtime reads, or a proto.
        batches: As of `NetworkChecker`.
        task: As of `NetworkChecker`.
        where: For error lines.
        changed: As of `NetworkChecker`.
    """

    def __init__(
        self,
        reference: Path | onnx.ModelProto,
        batches: Callable[[], Iterable[Batch]],
        task: Any,
        where: object,
        *,
        changed: str = "quantized",
    ) -> None:
        super().__init__(_onnx_network(reference, where), batches, task, changed)
        self._where = where

    def agreement(self, changed: onnx.ModelProto, progress: Callable[[int], None] = lambda _: None) -> Agreement:
        """As `compare`, of a model."""
        return self.compare(_onnx_network(changed, self._where), progress)


def _onnx_network(model: Path | onnx.ModelProto, where: object) -> Network:
    runner = Runner(model, where)
    return lambda feed: as_arrays(runner.named(feed))


@dataclass(slots=True)
class _Sums:
    """Running sums of every output, in the reference's order."""

    samples: int = 0
    outputs: dict[str, _OutputSums] = field(default_factory=dict)
    points: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    """Won before, won after, to be had."""

    def add(self, before: dict[str, Array], after: dict[str, Array], batch: Batch, task: Any) -> None:
        self.samples += batch.count
        # The bound is no criterion here: quantization is meant to change values, and the figures say how much.
        for compared in compare_outputs(before, after, tolerance=math.inf, mismatch_share=1.0):
            sums = self.outputs.setdefault(compared.name, _OutputSums())
            sums.compared.append(compared)
            if compared.structural is None:
                sums.add(before[compared.name], after[compared.name], batch.count)
        if task is not None and batch.labels is not None:
            first = next(iter(before))
            self.points += _points(before[first], after[first], batch.labels, task)

    def agreement(self, task: Any, changed: str) -> Agreement:
        scored = task is not None and self.points[2] > 0
        outputs = tuple(sums.record(changed) for sums in self.outputs.values())
        cosines = [one.cosine for one in outputs if one.cosine is not None]
        noises = [one.sqnr_db for one in outputs if one.sqnr_db is not None]
        agreements = [one.argmax_agreement for one in outputs if one.argmax_agreement is not None]
        return Agreement(
            samples=self.samples,
            score_name=str(task.score_name) if scored else None,
            score_better=better_of(task) if scored else "higher",
            score_before=float(self.points[0] / self.points[2]) if scored else None,
            score_after=float(self.points[1] / self.points[2]) if scored else None,
            cosine=min(cosines, default=1.0),
            sqnr_db=min(noises, default=_NOISELESS_DB),
            argmax_agreement=min(agreements) if agreements else None,
            outputs=outputs,
        )


@dataclass(slots=True)
class _OutputSums:
    """What is summed of one output."""

    compared: list[OutputComparison] = field(default_factory=list)
    rows: int = 0
    cosines: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    same: int = 0
    positions: int = 0

    def add(self, before: Array, after: Array, count: int) -> None:
        if before.dtype.kind != "f" or not before.size:
            return
        a, b = (_rows(array, count) for array in comparable_values(before, after))
        difference = a - b
        self.signal += float((a * a).sum())
        self.noise += float((difference * difference).sum())
        self.cosines += float(cosines_of_rows(a, b).sum())
        self.rows += len(a)
        if before.ndim >= 2 and before.shape[-1] > 1:
            agree = before.argmax(axis=-1) == after.argmax(axis=-1)
            self.same += int(agree.sum())
            self.positions += agree.size

    def record(self, changed: str) -> OutputAgreement:
        whole = merge_comparisons(self.compared)
        problem = ""
        if whole.structural is not None or whole.reason is Reason.NON_FINITE:
            problem = describe_comparison(whole, other=changed)
        floats = self.rows > 0
        return OutputAgreement(
            name=whole.name,
            cosine=self.cosines / self.rows if floats else None,
            sqnr_db=self._sqnr() if floats else None,
            argmax_agreement=self.same / self.positions if self.positions else None,
            equal_share=1 - whole.mismatches / whole.elements if whole.exact and whole.elements else None,
            nan_count=whole.nan_count,
            infinity_count=whole.infinity_count,
            problem=problem,
        )

    def _sqnr(self) -> float:
        if self.noise == 0:
            return _NOISELESS_DB
        if self.signal == 0:
            return -_NOISELESS_DB
        return min(10 * math.log10(self.signal / self.noise), _NOISELESS_DB)


def _rows(array: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Each sample in a row, whichever axis is the batch; an output without a batch is one row."""
    axis = next((place for place, size in enumerate(array.shape) if size == count), None)
    if axis is None:
        return array.reshape(1, -1)
    return np.moveaxis(array, axis, 0).reshape(count, -1)


def _points(before: Array, after: Array, labels: Any, task: Any) -> NDArray[np.float64]:
    import torch

    with torch.inference_mode():
        first, second = (task.score(torch.from_numpy(np.array(array)), labels).sum(dim=0) for array in (before, after))
    return np.array([float(first[0]), float(second[0]), float(first[1])])
