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

Array = NDArray[Any]

_HELD_OUT_SHARE = 0.2
_SEED = 0


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
                f"has {count} sample{'' if count == 1 else 's'}", where=where, mend="give two or more, better hundreds"
            )
        order = np.random.default_rng(_SEED).permutation(count)
        most = count - max(1, round(count * _HELD_OUT_SHARE))
        taken = min(samples, most)
        return cls(np.sort(order[:taken]), np.sort(order[taken : taken + held_out]))


class DataSetSource:
    """A data set of the train command; calibrated on its training part, judged on its test part.

    A training part that is read lazily is altered at random by its transforms, so then the test part is split.

    Args:
        dataset: An `nm2trt.data.DataSet`.
        port: The network's only input.
        samples: Most samples to calibrate with.
        held_out: Most samples to judge with.
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

    Args:
        arrays: Input name -> [N, *shape].
        labels: [N] integers, or None.
        ports: The network's inputs.
        samples: Most samples to calibrate with.
        held_out: Most samples to judge with.
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
                mend="name the arrays as the network's inputs",
            )
        self._arrays = {port.name: arrays[port.name] for port in ports}
        counts = {name: len(array) if array.ndim else 0 for name, array in self._arrays.items()}
        if labels is not None:
            counts["labels"] = len(labels)
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InputError(f"its arrays hold different numbers of samples: {said}", where=where)
        count = next(iter(counts.values()))
        if not count:
            raise InputError("holds no sample", where=where)
        check_feed({name: array[:1] for name, array in self._arrays.items()}, ports, where)
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

        for keys in chunks(indices, size, self._ports[0].batch):
            feed = {name: np.ascontiguousarray(array[keys]) for name, array in self._arrays.items()}
            labels = None if self._labels is None else torch.from_numpy(self._labels[keys].astype(np.int64))
            yield Batch(feed, len(keys), labels)


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
        fits = array.ndim == len(port.shape) and all(
            wanted is None or wanted == found for wanted, found in zip(port.shape[1:], array.shape[1:], strict=True)
        )
        if not fits:
            raise InputError(f"{port.name!r} is {list(array.shape)}, the network takes {shown(port)}", where=where)


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
            mend="give an .npz with an array for each input, or a function that yields dicts",
        )
    return ports[0]


def classification() -> Any:
    """Task of labels that came without one; imported late, since it brings torch."""
    from nm2trt.data import Classification

    return Classification()
