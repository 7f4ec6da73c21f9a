"""A data set as the training loop, the numerics check and the records see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nm2trt.data.samples import ArraySamples, Convert, Samples
from nm2trt.data.tasks import Classification, Task, better_of
from nm2trt.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Two parts of samples, and what they are for.

    Raises:
        InputError: A part that is in memory has labels outside 0..classes - 1, or samples of another shape; the task
            does not say which scores are better in the words that there are for it.
    """

    name: str
    source: str
    """Where the samples came from, for the records; no path of the machine."""
    classes: int
    """Width of the network's output."""
    input_shape: tuple[int, ...]
    """One sample, [C, H, W] for images."""
    train: Samples
    test: Samples
    task: Task = field(default_factory=Classification)

    def __post_init__(self) -> None:
        better_of(self.task)
        for part, samples in (("train", self.train), ("test", self.test)):
            if isinstance(samples, ArraySamples) and isinstance(self.task, Classification):
                _check_labels(samples.y, self.classes, f"{self.name} {part}")
            x_BX, _ = samples.fetch([0], 0)
            if tuple(x_BX.shape[1:]) != self.input_shape:
                raise InputError(
                    f"samples are {list(x_BX.shape[1:])} and not {list(self.input_shape)}", where=f"{self.name} {part}"
                )
            if x_BX.dtype != torch.float32:
                raise InputError(f"samples are {x_BX.dtype} and not float32", where=f"{self.name} {part}")

    @classmethod
    def from_arrays(
        cls,
        *,
        name: str,
        source: str,
        classes: int,
        train_x_NX: NDArray[Any],
        train_y_N: NDArray[np.int64],
        test_x_NX: NDArray[Any],
        test_y_N: NDArray[np.int64],
        convert: Convert | None = None,
    ) -> DataSet:
        """Make a classification data set of arrays.

        Args:
            name: For the records.
            source: For the records.
            classes: Labels are 0 to classes - 1.
            train_x_NX: float32 [N, *input_shape], or what `convert` takes; test_x_NX the same.
            train_y_N: int64 [N]; test_y_N the same.
            test_x_NX: See train_x_NX.
            test_y_N: See train_y_N.
            convert: Stored batch -> float32 [B, *input_shape].

        Raises:
            InputError: Counts, shapes or labels do not fit.
        """
        train = ArraySamples(train_x_NX, train_y_N, name=f"{name} train", convert=convert)
        test = ArraySamples(test_x_NX, test_y_N, name=f"{name} test", convert=convert)
        x_BX, _ = train.fetch([0], 0)
        return cls(
            name=name,
            source=source,
            classes=classes,
            input_shape=tuple(x_BX.shape[1:]),
            train=train,
            test=test,
        )

    def test_samples(self, count: int) -> NDArray[np.float32]:
        """Return the first `count` test samples (or all, if fewer), [count, *input_shape], without augmentation."""
        x_BX, _ = self.test.fetch(range(min(count, len(self.test))), 0)
        samples: NDArray[np.float32] = x_BX.numpy()
        return samples


def _check_labels(y_N: torch.Tensor, classes: int, where: str) -> None:
    if y_N.ndim != 1 or y_N.dtype != torch.int64:
        raise InputError(f"labels are {list(y_N.shape)} {y_N.dtype} and not [N] int64", where=where)
    bad = torch.nonzero((y_N < 0) | (y_N >= classes))
    if len(bad):
        index = int(bad[0])
        raise InputError(f"label {index} is {int(y_N[index])}, outside 0..{classes - 1}", where=where)
