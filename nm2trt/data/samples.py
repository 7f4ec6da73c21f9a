"""Where samples come from: arrays in memory, or a torch data set that reads each one when it is asked for.

Both answer a whole batch at once, and every random choice they make follows from the run's seed and the sample's
key alone. So neither the number of workers nor the batch at which a run was resumed changes what a network sees.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.user_code import describe

Batch = tuple[torch.Tensor, torch.Tensor]
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
Convert = Callable[[torch.Tensor], torch.Tensor]

_NUMPY_SEED_BITS = 32
_CHECKED_AT_ONCE = 1024


@runtime_checkable
class Samples(Protocol):
    """One part of a data set, train or test."""

    @property
    def in_memory(self) -> bool:
        """True where a batch is one gather, so that worker processes would only cost."""

    def __len__(self) -> int:
        """Count the samples."""

    def fetch(self, keys: Sequence[int], seed: int) -> Batch:
        """Return (x [B, *input_shape] float32, y [B] int64 for classes).

        Args:
            keys: `epoch * len(self) + index` of each sample.
            seed: Of the run.
        """


class SampleError(InputError):
    """An input error that survives its way out of a worker process as the one line that it is.

    torch raises it again there with the worker's whole traceback as its only argument.
    """

    def __init__(self, what: str, *, where: object = "", hint: str = "") -> None:
        lines = what.splitlines()
        if len(lines) > 1 and "Traceback" in what:
            what = lines[-1].partition(f"{type(self).__name__}: ")[2] or lines[-1]
        super().__init__(what, where=where, hint=hint)


def draw(seed: int, key: int) -> int:
    """Mix a run's seed and a key into 64 bits, the same on every machine (numpy's SeedSequence)."""
    return int(np.random.SeedSequence((seed, key)).generate_state(1, np.uint64)[0])


class ArraySamples:
    """Samples in memory, stored as they are smallest and converted a batch at a time.

    Args:
        x_NX: [N, *stored shape]; float32, or what `convert` takes.
        y_N: int64, [N, ...].
        name: Of the data set and part, for error lines.
        convert: Stored batch -> float32 [B, *input_shape].
        augment: Applied to the stored batch before `convert`, with a generator of its own.

    Raises:
        InputError: The counts differ, there is no sample, or one holds NaN or infinity.
    """

    in_memory = True

    def __init__(
        self,
        x_NX: NDArray[Any] | torch.Tensor,
        y_N: NDArray[np.int64] | torch.Tensor,
        *,
        name: str,
        convert: Convert | None = None,
        augment: Augment | None = None,
    ) -> None:
        if len(x_NX) != len(y_N) or not len(y_N):
            raise InputError(f"{len(x_NX)} samples and {len(y_N)} labels", where=name)
        self.x = _as_tensor(x_NX)
        _check_finite(self.x, name)
        self.y = _as_tensor(y_N)
        self._convert = convert
        self._augment = augment

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.y)

    def fetch(self, keys: Sequence[int], seed: int) -> Batch:
        """See `Samples`."""
        chosen_B = torch.as_tensor(keys, dtype=torch.int64) % len(self.y)
        x_BX = self.x[chosen_B]
        if self._augment is not None:
            x_BX = self._augment(x_BX, torch.Generator().manual_seed(draw(seed, int(keys[0]))))
        if self._convert is not None:
            x_BX = self._convert(x_BX)
        return x_BX, self.y[chosen_B]


class LazySamples:
    """Samples that a map-style torch data set reads one by one, checked as they come.

    Args:
        dataset: Has `__len__`, and `__getitem__(index) -> (x, label)`.
        name: Of the data set and part, for error lines.
        classes: Labels are 0 to classes - 1.
        input_shape: Every x has it; None takes the first sample's.

    Raises:
        InputError: There is no sample, or the first one cannot be used.
    """

    in_memory = False

    def __init__(self, dataset: Any, *, name: str, classes: int, input_shape: tuple[int, ...] | None = None) -> None:
        self._dataset = dataset
        self._name = name
        self._classes = classes
        self._count = len(dataset)
        if not self._count:
            raise InputError("has no sample", where=name)
        self.input_shape = input_shape
        x_X, _ = self._read(0, 0)
        self.input_shape = tuple(x_X.shape)

    def __len__(self) -> int:
        """Count the samples."""
        return self._count

    def fetch(self, keys: Sequence[int], seed: int) -> Batch:
        """See `Samples`.

        Raises:
            SampleError: A sample cannot be read, or has another shape, dtype or label than promised.
        """
        pairs = [self._read(int(key) % self._count, draw(seed, int(key))) for key in keys]
        return torch.stack([x_X for x_X, _ in pairs]), torch.tensor([label for _, label in pairs])

    def _read(self, index: int, seed: int) -> tuple[torch.Tensor, int]:
        with seeded(seed):
            try:
                sample = self._dataset[index]
            except InputError as error:
                raise SampleError(error.what, where=error.where, hint=error.hint) from None
            except Exception as error:
                raise SampleError(f"raised {describe(error)}", where=f"{self._name} sample {index}") from error
        try:
            x, label = sample
        except (TypeError, ValueError):
            raise SampleError(
                f"is {type(sample).__name__} and no pair (x, label)", where=f"{self._name} sample {index}"
            ) from None
        return self._checked_x(x, index), self._checked_label(label, index)

    def _checked_x(self, x: Any, index: int) -> torch.Tensor:
        where = f"{self._name} sample {index}"
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(x)
        if not isinstance(x, torch.Tensor):
            raise SampleError(
                f"x is {type(x).__name__} and no tensor", where=where, hint="end its transform with one that makes one"
            )
        if not x.is_floating_point():
            raise SampleError(f"x is {_dtype(x)}", where=where, hint="scale it to float32")
        if self.input_shape is not None and tuple(x.shape) != self.input_shape:
            raise SampleError(
                f"x is {list(x.shape)}, others are {list(self.input_shape)}",
                where=where,
                hint="bring all samples to one shape",
            )
        found = x.detach().to(torch.float32)
        if (words := unusable(found)) is not None:
            raise SampleError(words, where=where, hint="leave the sample out, or repair it")
        return torch.Tensor(found)

    def _checked_label(self, label: Any, index: int) -> int:
        where = f"{self._name} sample {index}"
        if isinstance(label, torch.Tensor | np.ndarray) and label.ndim == 0:
            label = label.item()
        if isinstance(label, bool) or not isinstance(label, int | np.integer):
            raise SampleError(f"the label is {label!r:.40} ({type(label).__name__}) and no integer", where=where)
        if not 0 <= label < self._classes:
            raise SampleError(f"the label is {label}, outside 0..{self._classes - 1}", where=where)
        return int(label)


def unusable(x_X: torch.Tensor) -> str | None:
    """Name the first value of a sample that is no finite number, with its place; None where all are."""
    if not x_X.is_floating_point() or bool(x_X.isfinite().all()):
        return None
    place = tuple(int(index) for index in torch.nonzero(~x_X.isfinite())[0])
    return f"x holds {float(x_X[place])} at {list(place)}"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators that transforms draw from (torch on the CPU, random, numpy), and put them back after."""
    generator = torch.default_generator
    before = generator.get_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 -- others draw from it
    # Not torch.manual_seed: that would restart the accelerator's generators, too.
    generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**_NUMPY_SEED_BITS)  # noqa: NPY002
    try:
        yield
    finally:
        generator.set_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])  # noqa: NPY002


def _as_tensor(array: NDArray[Any] | torch.Tensor) -> torch.Tensor:
    return array.contiguous() if isinstance(array, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(array))


def _check_finite(x_NX: torch.Tensor, name: str) -> None:
    if not x_NX.is_floating_point():
        return
    for start in range(0, len(x_NX), _CHECKED_AT_ONCE):
        piece = x_NX[start : start + _CHECKED_AT_ONCE]
        if bool(piece.isfinite().all()):
            continue
        for index, x_X in enumerate(piece, start):
            if (words := unusable(x_X)) is not None:
                raise InputError(words, where=f"{name} sample {index}", hint="leave the sample out, or repair it")


def _dtype(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
