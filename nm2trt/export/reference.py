"""What an exported graph is held against: the torch network in float32, or the ONNX file as it was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nm2trt.artifacts import BatchRange
from nm2trt.errors import InputError
from nm2trt.export.inputs import InputSpec, random_feeds
from nm2trt.export.torch_graph import called
from nm2trt.library_errors import one_line
from nm2trt.ort.session import session_of

Array = NDArray[Any]
Feeds = dict[str, Array]

FEWEST_SAMPLES, MOST_SAMPLES = 8, 1024
_USUAL_SAMPLES = 64
_BUDGET_MACS = 2e10
"""Multiply-accumulates that the samples of a check may cost together: about a second on one core."""


class Reference(Protocol):
    """Gives the outputs that are right."""

    described: str
    """What computed them, in words."""
    one_by_one: bool
    """Whether it runs at the smallest batch, so that a comparison shows that the batch is free."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Output name -> values, in the graph's order."""
        ...


class TorchReference:
    """The network in float32 on the CPU, with BatchNorm as trained."""

    one_by_one = False

    def __init__(self, module: nn.Module, inputs: Sequence[InputSpec]) -> None:
        self._module = module
        self._inputs = inputs
        self.described = f"torch {torch.__version__} float32 CPU, BatchNorm not folded"

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the network."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feeds.items()}
        with torch.inference_mode():
            found = called(self._module, tensors, self._inputs)
        return {name: tensor.numpy() for name, tensor in found.items()}


class OnnxReference:
    """An ONNX file as it was found."""

    def __init__(self, path: Path, *, converted: bool) -> None:
        self._path = path
        self._session: Any = None
        self.one_by_one = not converted
        self.described = (
            f"{path.name} as found, in ONNX Runtime on the CPU without graph optimizations"
            if converted
            else f"{path.name} itself at the smallest batch, in ONNX Runtime on the CPU without graph optimizations; "
            "this shows that it runs at every batch with the same results, not that the file is right"
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the file."""
        if self._session is None:
            self._session = session_of(self._path, optimized=False)
        found: dict[str, Array] = self._session.run(feeds)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Inputs of the check, and where they came from in words."""

    feeds: Feeds
    """Input name -> [samples, *shape]; of a graph with fixed shapes [runs, *whole shape]."""
    inputs: str
    fixed: bool = False
    """Whether the graph's shapes are fixed, so that each entry is one whole run."""
    constants: Feeds = field(default_factory=dict)
    """Input name -> its whole value, the same in every run: a speed, a sample rate, an input without a batch."""
    batch_axes: Mapping[str, int] = field(default_factory=dict)
    """Input name -> where its batch is in the graph, for those where it is not first."""

    @property
    def count(self) -> int:
        """Number of samples, or of runs."""
        return len(next(iter(self.feeds.values()))) if self.feeds else 1

    def pieces(self, size: int, count: int) -> Iterator[Feeds]:
        """The first `count` samples in batches of `size`, or as many runs."""
        if self.fixed:
            for index in range(count):
                yield {name: np.asarray(values[index]) for name, values in self.feeds.items()} | self.constants
            return
        for start in range(0, count, size):
            yield self.piece(start, min(start + size, count))

    def piece(self, start: int, stop: int) -> Feeds:
        """The samples from `start` to before `stop` as one batch, laid out as the graph takes it."""
        cut = {name: values[start:stop] for name, values in self.feeds.items()}
        moved = {
            name: np.ascontiguousarray(np.moveaxis(values, 0, self.batch_axes[name]))
            if self.batch_axes.get(name)
            else values
            for name, values in cut.items()
        }
        return moved | self.constants


def sample_count(macs: float | None, batch: BatchRange | None) -> int:
    """How many samples a check takes: as many as the largest batch, between 64 and 1,024, and fewer of large networks.

    Args:
        macs: Multiply-accumulates of one sample; None where they are not known.
        batch: Sizes to build for; None for a graph with fixed shapes.
    """
    wanted = min(max(batch.max if batch else FEWEST_SAMPLES, _USUAL_SAMPLES), MOST_SAMPLES)
    if not macs:
        return wanted
    return max(min(wanted, int(_BUDGET_MACS / macs)), FEWEST_SAMPLES)


def noise(inputs: Sequence[InputSpec], count: int, *, fixed: bool = False) -> Samples:
    """Seeded values, for a source that names no data; the record says so."""
    what = (
        "seeded normal noise" if all(one.dtype.startswith(("float", "bfloat")) for one in inputs) else "seeded values"
    )
    word = "runs" if fixed else "samples"
    return laid_out(
        random_feeds(inputs, count), inputs, f"{count} {word} of {what} (the source names no data)", fixed=fixed
    )


def laid_out(feeds: Feeds, inputs: Sequence[InputSpec], words: str, *, fixed: bool) -> Samples:
    """Samples of a network; an input without a batch beside others that have one keeps its first value throughout."""
    free = {one.name for one in inputs if one.batched}
    constants = {} if fixed else {name: np.asarray(values[0]) for name, values in feeds.items() if name not in free}
    held = [f"{name} is {_shown(value)}" for name, value in constants.items()]
    held += [f"{one.name} is {_shown(np.asarray(feeds[one.name][0]))}" for one in inputs if one.values and one.batched]
    return Samples(
        feeds={name: values for name, values in feeds.items() if name not in constants},
        inputs="; ".join((words, *held)),
        fixed=fixed,
        constants=constants,
        batch_axes={one.name: one.batch_axis for one in inputs if one.batched},
    )


def _shown(value: Array) -> str:
    if value.size == 1:
        return f"{value.reshape(-1)[0]:g}"
    return f"the same {value.dtype} {list(value.shape)} in all"


def samples_of_data(data: str, inputs: Sequence[InputSpec], count: int, data_dir: Path | None) -> Samples:
    """Take real test samples of a data set.

    Raises:
        InputError: The data set cannot be read, or its samples are of another shape.
    """
    from nm2trt.data import load_data_for

    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs)
        raise InputError(
            f"the network has {len(inputs)} inputs ({names}) and a data set feeds one",
            where=f"data set {data}",
            hint="give them in a file with --samples",
        )
    one = inputs[0]
    x_BX = load_data_for(data, one.shape, data_dir).test_samples(count)
    if tuple(x_BX.shape[1:]) != tuple(one.shape):
        raise InputError(
            f"samples are {list(x_BX.shape[1:])}, the network takes {list(one.shape)}", where=f"data set {data}"
        )
    return Samples(
        feeds={one.name: np.ascontiguousarray(x_BX, dtype=np.float32)},
        inputs=f"first {len(x_BX)} test samples of {data}",
    )


def samples_of_file(path: Path, inputs: Sequence[InputSpec]) -> Samples:
    """Read samples from a .npz of one array [samples, *shape] for each input, or a .npy for a network with one.

    Raises:
        InputError: The file is unreadable, or its arrays are not the network's inputs.
    """
    arrays = _arrays(path, inputs)
    feeds = {}
    fixed = not any(one.batched for one in inputs)
    wrong = [f"it has no {one.name}" for one in inputs if one.name not in arrays and one.values is None]
    wrong += [f"the network has no input {name}" for name in arrays if name not in {one.name for one in inputs}]
    for one in inputs:
        if one.name not in arrays:
            continue
        try:
            feeds[one.name] = _samples_first(arrays[one.name], one, fixed=fixed)
        except ValueError as error:
            wrong.append(str(error))
    counts = {len(feeds[one.name]) for one in inputs if one.name in feeds and (one.batched or fixed)}
    if len(counts) > 1:
        wrong.append("its arrays hold different numbers of samples")
    if not wrong and not counts:
        wrong.append("it holds no samples")
    if wrong:
        raise InputError("; ".join(wrong), where=path, hint="save one array for each input with numpy.savez")
    count = counts.pop()
    given = [one for one in inputs if one.name not in feeds]
    feeds |= random_feeds(given, count if fixed or any(one.batched for one in given) else 1)
    return laid_out(
        {one.name: feeds[one.name] for one in inputs}, inputs, f"all {count} samples of {path.name}", fixed=fixed
    )


def _samples_first(array: Array, one: InputSpec, *, fixed: bool) -> Array:
    """[samples, *shape] of one input; of an input without a batch [1, *shape].

    Raises:
        ValueError: The array is not the input's; the message says how.
    """
    shape = "x".join(map(str, one.shape))
    if (array.dtype.kind == "f") != one.dtype.startswith(("float", "bfloat")):
        raise ValueError(f"{one.name} is {array.dtype}, not {one.dtype}")
    array = array.astype("float32" if one.dtype == "bfloat16" else one.dtype)
    rest = array.shape[: one.batch_axis] + array.shape[one.batch_axis + 1 :]
    if one.batched and one.batch_axis and array.ndim == len(one.shape) + 1 and rest == one.shape:
        # As the network takes it, its batch not first.
        return np.moveaxis(array, one.batch_axis, 0)
    if not one.batched and not fixed:
        if array.shape == one.shape:
            return array[None]
        if array.ndim and array.shape[1:] == one.shape and len(array):
            if (array != array[:1]).any():
                raise ValueError(
                    f"{one.name} has no batch in the network and differs from sample to sample: give one array of "
                    f"shape [{shape}], the same for all"
                )
            return array[:1]
        raise ValueError(f"{one.name} is {list(array.shape)}, not [{shape}]")
    if array.ndim == 0 or array.shape[1:] != one.shape or not len(array):
        raise ValueError(f"{one.name} is {list(array.shape)}, not [samples{', ' if shape else ''}{shape}]")
    return array


def _arrays(path: Path, inputs: Sequence[InputSpec]) -> dict[str, Array]:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {inputs[0].name: found}
        with found:
            return {name: found[name] for name in found.files}
    except FileNotFoundError:
        raise InputError("no such file", where=path, hint="give a .npz with --samples") from None
    except Exception as error:  # noqa: BLE001 -- numpy and zipfile raise many kinds on broken files
        raise InputError(f"is no readable .npz: {one_line(error)}", where=path) from None
