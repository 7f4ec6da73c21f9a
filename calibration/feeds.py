"""Samples for calibration and for the proof, batch by batch: the train command's data sets, arrays, functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nm2trt.calibration.graph import Port
from nm2trt.calibration.sessions import Feed
from nm2trt.errors import InputError
from nm2trt.ort.random_inputs import NUMPY_TYPES, draw_values

Array = NDArray[Any]

_HELD_OUT_SHARE = 0.2
_SEED = 0
_DRAWN = frozenset(np.dtype(one).name for one in NUMPY_TYPES.values())


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples for every input of the network."""

    feed: Feed
    count: int
    labels: Any = None
    """torch tensor [count, ...], or None."""


class Source(Protocol):
    """Where samples come from. Both iterators start anew at every call and give the same samples."""

    @property
    def words(self) -> str:
        """For the record; no path of the machine."""

    @property
    def task(self) -> Any:
        """`nm2trt.data.Task` that scores outputs against labels; None where there are no labels."""

    def calibration(self, size: int) -> Iterator[Batch]:
        """Give the samples that choose the ranges, `size` at a time."""

    def held_out(self, size: int) -> Iterator[Batch]:
        """Give samples that the ranges never saw."""


@dataclass(frozen=True, slots=True)
class Split:
    """Which samples of one set calibrate, and which are held out."""

    calibration: NDArray[np.int64]
    held_out: NDArray[np.int64]

    @classmethod
    def of(cls, count: int, samples: int, held_out: int, where: object) -> Split:
        """Draw both with a fixed seed; at least a fifth of the samples is held out.

        Raises:
            InputError: There are fewer than two samples.
        """
        if count < 2:
            raise InputError(
                f"has {count} sample{'' if count == 1 else 's'}", where=where, hint="give two or more, better hundreds"
            )
        order = np.random.default_rng(_SEED).permutation(count)
        most = count - max(1, round(count * _HELD_OUT_SHARE))
        taken = min(samples, most)
        return cls(np.sort(order[:taken]), np.sort(order[taken : taken + held_out]))


class DataSetSource:
    """A data set of the train command; calibrated on its training part, checked on its test part.

    A training part that is read lazily is altered at random by its transforms, so then the test part is split.

    Args:
        dataset: An `nm2trt.data.DataSet`.
        port: The network's only input.
        samples: Most samples to calibrate with.
        held_out: Maximum number of held-out evaluation samples.
    """

    def __init__(self, dataset: Any, port: Port, samples: int, held_out: int) -> None:
        self._port = port
        self.task = dataset.task
        self._test = dataset.test
        if dataset.train.in_memory:
            self._train = dataset.train
            self._split = Split(
                np.arange(min(samples, len(dataset.train))), np.arange(min(held_out, len(dataset.test)))
            )
            part = "training samples"
        else:
            self._train = dataset.test
            self._split = Split.of(len(dataset.test), samples, held_out, dataset.name)
            part = "test samples"
        self.words = (
            f"{dataset.name} ({dataset.source}): {len(self._split.calibration)} {part}, held out "
            f"{len(self._split.held_out)} test samples"
        )

    def calibration(self, size: int) -> Iterator[Batch]:
        """See `Source`."""
        return self._batches(self._train, self._split.calibration, size)

    def held_out(self, size: int) -> Iterator[Batch]:
        """See `Source`."""
        return self._batches(self._test, self._split.held_out, size)

    def _batches(self, samples: Any, indices: NDArray[np.int64], size: int) -> Iterator[Batch]:
        for keys in chunks(indices, size, self._port.batch):
            x_BX, y_B = samples.fetch([int(key) for key in keys], 0)
            array = x_BX.numpy().astype(self._port.dtype, copy=False)
            yield Batch({self._port.name: array}, len(keys), y_B)


class ArraySource:
    """Arrays by input name, in memory or mapped from a file.

    An array is [samples, ...] with the samples where the network has its batch: first, or in the middle for a
    recurrent state [layers, batch, hidden], which may also come as [samples, layers, hidden]. For an input without a
    batch (a speed, a sample rate) it is one value for all, in the input's own shape, or [samples, *shape].

    Args:
        arrays: Input name -> values.
        labels: [N] integers, or None.
        ports: The network's inputs.
        samples: Most samples to calibrate with.
        held_out: Maximum number of held-out evaluation samples.
        where: File name, for the record and error lines.

    Raises:
        InputError: Inputs are missing, counts differ, or a shape or type is not the network's.
    """

    def __init__(
        self,
        arrays: dict[str, Array],
        labels: Array | None,
        ports: Sequence[Port],
        *,
        samples: int,
        held_out: int,
        where: str,
    ) -> None:
        missing = [port.name for port in ports if port.name not in arrays]
        if missing:
            raise InputError(
                f"holds no array {missing[0]!r} (it holds {', '.join(arrays) or 'none'})",
                where=where,
                hint="name the arrays as the network's inputs",
            )
        self._inputs = [_InputArray.of(port, arrays[port.name], where) for port in ports]
        counts = {one.port.name: one.count for one in self._inputs if one.count is not None}
        if labels is not None:
            counts["labels"] = len(labels)
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InputError(f"its arrays hold different numbers of samples: {said}", where=where)
        count = next(iter(counts.values()), 0)
        if not count:
            raise InputError("holds no sample", where=where)
        # One run at a time, where an input without a batch differs from sample to sample.
        self._alone = any(one.whole_runs for one in self._inputs)
        self._fixed = next((size for one in self._inputs if (size := one.port.batch) is not None and one.batched), None)
        self._ports = ports
        self._labels = labels
        self._split = Split.of(count, samples, held_out, where)
        self.task = classification() if labels is not None else None
        self.words = f"{where}: {len(self._split.calibration)} samples, held out {len(self._split.held_out)}"

    def calibration(self, size: int) -> Iterator[Batch]:
        """See `Source`."""
        return self._batches(self._split.calibration, size)

    def held_out(self, size: int) -> Iterator[Batch]:
        """See `Source`."""
        return self._batches(self._split.held_out, size)

    def _batches(self, indices: NDArray[np.int64], size: int) -> Iterator[Batch]:
        import torch

        for keys in chunks(indices, 1 if self._alone else size, None if self._alone else self._fixed):
            feed = {one.port.name: one.take(keys) for one in self._inputs}
            labels = None if self._labels is None else torch.from_numpy(self._labels[keys].astype(np.int64))
            yield Batch(feed, len(keys), labels)


@dataclass(frozen=True, slots=True)
class _InputArray:
    """One input's array, and how samples are cut out of it."""

    port: Port
    array: Array
    axis: int | None
    """Of the samples; None where the array is one value for all."""
    whole_runs: bool = False
    """Whether each entry of axis 0 is a whole input, its batch included."""

    @classmethod
    def of(cls, port: Port, array: Array, where: str) -> _InputArray:
        """Tell the layout.

        Raises:
            InputError: The array is not the input's, in any layout.
        """
        if str(array.dtype) != port.dtype:
            raise InputError(f"{port.name!r} is {array.dtype}, the network takes {port.dtype}", where=where)
        free = port.batch_axis
        batch_first = port.shape if free is None else (None, *port.shape[:free], *port.shape[free + 1 :])
        if free is not None and _fits(array.shape, port.shape):
            return cls(port, array, free)
        if free and _fits(array.shape, batch_first):
            return cls(port, np.moveaxis(array, 0, free), free)
        # Beside other inputs that have a batch, or in one fixed run.
        if free is None and port.has_samples_first and _fits(array.shape, (None, *port.shape[1:])):
            return cls(port, array, 0)
        if free is None and array.shape == port.shape:
            return cls(port, array, None)
        if free is None and _fits(array.shape, (None, *port.shape)) and len(array):
            if (array == array[:1]).all():
                return cls(port, np.asarray(array[0]), None)
            return cls(port, array, 0, whole_runs=True)
        raise InputError(
            f"{port.name!r} is {list(array.shape)}, the network takes {shown(port)}",
            where=where,
            hint="give [samples, ...] or, for an input without a batch, its value; a function "
            "(--data package.module:function) can feed any network",
        )

    @property
    def batched(self) -> bool:
        return self.axis is not None and not self.whole_runs

    @property
    def count(self) -> int | None:
        """Samples; None where one value is for all."""
        return None if self.axis is None else self.array.shape[self.axis]

    def take(self, keys: NDArray[np.int64]) -> Array:
        if self.axis is None:
            return self.array
        if self.whole_runs:
            # Of a rank 0 numpy's ascontiguousarray makes a rank of 1.
            return np.asarray(self.array[keys[0]])
        return np.ascontiguousarray(np.take(self.array, keys, axis=self.axis))


def _fits(shape: tuple[int, ...], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        size is None or size == found for size, found in zip(wanted, shape, strict=True)
    )


def chunks(indices: NDArray[np.int64], size: int, fixed: int | None) -> Iterator[NDArray[np.int64]]:
    """Cut indices into batches of `size`; into full ones of the graph's own size where that is fixed."""
    if fixed is None:
        for at in range(0, len(indices), size):
            yield indices[at : at + size]
        return
    for at in range(0, len(indices) - fixed + 1, fixed):
        yield indices[at : at + fixed]


def check_feed(feed: Feed, ports: Sequence[Port], where: object) -> None:
    """Hold a batch against the network's inputs.

    Raises:
        InputError: An input is missing or unknown, or has another type or shape.
    """
    names = [port.name for port in ports]
    for name in feed:
        if name not in names:
            raise InputError(f"gives {name!r}, and the network's inputs are {', '.join(names)}", where=where)
    for port in ports:
        if port.name not in feed:
            raise InputError(f"gives no {port.name!r}, an input of the network", where=where)
        array = np.asarray(feed[port.name])
        if str(array.dtype) != port.dtype:
            raise InputError(f"{port.name!r} is {array.dtype}, the network takes {port.dtype}", where=where)
        # A first axis of fixed size is the batch of older files, and any other batch is left to ONNX Runtime to refuse.
        wanted = (None, *port.shape[1:]) if port.shape else ()
        if not _fits(array.shape, wanted):
            raise InputError(f"{port.name!r} is {list(array.shape)}, the network takes {shown(port)}", where=where)


def random_feed(ports: Sequence[Port], size: int = 2, free: int = 8) -> Feed:
    """Seeded values for one batch where no samples were given; empty where a type has none.

    Args:
        ports: The network's inputs.
        size: Of a free batch.
        free: Of other free axes.
    """
    random = np.random.default_rng(_SEED)
    feed: Feed = {}
    for port in ports:
        shape = [
            size_ if size_ is not None else (size if axis == port.batch_axis else free)
            for axis, size_ in enumerate(port.shape)
        ]
        if port.dtype not in _DRAWN:
            return {}
        feed[port.name] = draw_values(random, shape, port.dtype)
    return feed


def shown(port: Port) -> str:
    """Write a port's shape, free sizes as a question mark."""
    return "[" + ", ".join("?" if size is None else str(size) for size in port.shape) + "]"


def only_port(ports: Sequence[Port], where: object) -> Port:
    """Return the network's only input.

    Raises:
        InputError: It has several.
    """
    if len(ports) != 1:
        raise InputError(
            f"gives one array per sample, and the network has {len(ports)} inputs: {', '.join(p.name for p in ports)}",
            where=where,
            hint="give an .npz with an array for each input, or a function that yields dicts",
        )
    return ports[0]


def classification() -> Any:
    """Task of labels that came without one; imported late, since it brings torch."""
    from nm2trt.data import Classification

    return Classification()
