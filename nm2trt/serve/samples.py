"""Inputs for a server's check: what the network takes, drawn, or read from a file."""

from __future__ import annotations

import itertools
import math
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nm2trt.artifacts import BuildDocument, GraphPort
from nm2trt.errors import ConfigError, InputError
from nm2trt.selectors import parse_named_shape
from nm2trt.serve.draw import Array, Limits, count_covered, draw_arrays, range_of
from nm2trt.serve.ports import has_dynamic_batch, numpy_type

Feed = dict[str, Array]

SAMPLES = 64
MOST_COVERING = 4096
"""Most requests that are sent so that every row of a table is looked up."""
ENOUGH_REQUESTS = 200
_AGAIN_S = 5.0
_LENGTHS = (8, 13, 32)
"""Of a free dimension besides the batch, where nothing says one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Samples of one shape; several of these where sizes besides the batch are free."""

    batched: bool
    """Whether several samples can go in one request."""
    count: int
    arrays: dict[str, Array]
    """[samples, ...] each: a sample's own shape behind, which for a graph of fixed shapes includes its batch. An array
    may hold fewer samples than `count`; it starts again then."""
    label: str = ""
    """Sizes that tell this group from others, "seq 8"."""

    def feed(self, at: int, size: int = 1) -> Feed:
        """Inputs of a request with samples at, at + 1, ...; wraps around."""
        if not self.batched:
            return {name: array[at % self.count % len(array)] for name, array in self.arrays.items()}
        rows = np.arange(at, at + size) % self.count
        return {name: array[rows % len(array)] for name, array in self.arrays.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSet:
    """All samples of a check."""

    groups: tuple[Samples, ...]
    origin: str
    """Where they come from, for the report."""

    @property
    def words(self) -> str:
        """What they are, for the report."""
        labels = "; ".join(group.label for group in self.groups if group.label)
        return f"{self.origin}, {labels}" if labels else self.origin

    @property
    def count(self) -> int:
        """Samples of all groups."""
        return sum(group.count for group in self.groups)

    @property
    def batched(self) -> bool:
        """Whether several samples can go in one request."""
        return self.groups[0].batched


def choose_samples(
    build: BuildDocument,
    limits: Limits,
    *,
    count: int = SAMPLES,
    data_dir: Path | None = None,
    shapes: Sequence[Mapping[str, int]] = (),
) -> SampleSet:
    """Take the build's own test samples; where it names no data, draw what the network takes.

    Args:
        build: The build's document.
        limits: Ranges of integer inputs, as `nm2trt.ort.index_limits` or `index_probe.probe_ranges` have them.
        count: How many samples at least.
        data_dir: Where the data set's files are; None looks in the usual places.
        shapes: Sizes of free dimensions by name, as `read_shapes` gives; empty: a few usual ones.

    Raises:
        InputError: The data cannot be read.
    """
    batched = has_dynamic_batch(build)
    if batched:
        arrays, words = _own_data(build, count, data_dir)
        if arrays:
            samples = Samples(batched=True, count=len(next(iter(arrays.values()))), arrays=arrays)
            return SampleSet(groups=(samples,), origin=words)
    choices = list(shapes or free_size_choices(build))
    # Once is enough, and the longest shape needs the fewest samples for it.
    longest = max(range(len(choices)), key=lambda at: math.prod(choices[at].values()))
    most = MOST_COVERING * (build.batch.max if batched and build.batch is not None else 1)
    groups = [
        _draw(build.inputs, limits, sizes, count, batched=batched, most=most if at == longest else 0)
        for at, sizes in enumerate(choices)
    ]
    words = f"{groups[0].count} samples of seeded noise" + (" for each shape" if len(groups) > 1 else "")
    for name, limit in sorted(limits.items()):
        rows = range_of(limit).rows
        if not rows:
            continue
        most = max(count_covered(group.arrays[name], limit) for group in groups)
        words += f", {name} over {'all' if most == rows else f'{most} of'} {rows} rows"
    return SampleSet(groups=tuple(groups), origin=words)


def free_names(build: BuildDocument) -> list[str]:
    """Names of the inputs' free dimensions besides the batch."""
    skip = has_dynamic_batch(build)
    sizes = [size for port in build.inputs for size in port.shape[skip:] if not isinstance(size, int)]
    return list(dict.fromkeys(sizes))


def free_size_choices(build: BuildDocument) -> list[dict[str, int]]:
    """Sizes of the free dimensions to try: all alike, and each another where there are several.

    A server that takes the height for the width is right where they are equal.
    """
    names = free_names(build)
    alike = [dict.fromkeys(names, length) for length in _LENGTHS] if names else [{}]
    if len(names) > 1:
        alike.append({name: _LENGTHS[at % len(_LENGTHS)] for at, name in enumerate(names)})
    return alike


def one_feed(build: BuildDocument, limits: Limits, sizes: Mapping[str, int]) -> Feed:
    """A request of one sample, to try whether the graph takes these sizes."""
    return _draw(build.inputs, limits, sizes, 1, batched=has_dynamic_batch(build), most=0).feed(0)


def read_shapes(texts: Sequence[str], build: BuildDocument) -> list[dict[str, int]]:
    """Read `INPUT=1x128` for free dimensions; an input that is given several times gets several sizes in turn.

    Returns:
        Sizes by the dimension's name, one entry for each turn; the first number, the batch, has no say where the
        batch is free.

    Raises:
        ConfigError: No such input, a wrong rank, a size that the graph fixes or that two inputs contradict, or a
            dimension that stays free.
    """
    ports = {port.name: port for port in build.inputs}
    turns: dict[str, list[dict[str, int]]] = {}
    batched = has_dynamic_batch(build)
    for text in texts:
        name, sizes = parse_named_shape(text)
        if name not in ports:
            raise ConfigError(
                f"{text!r}: no input {name!r}", where="--shape", hint=f"the inputs are {', '.join(ports)}"
            )
        port = ports[name]
        if len(sizes) != len(port.shape):
            raise ConfigError(f"{text!r} is no shape like {list(port.shape)}", where="--shape", hint=f"{name}=1x128")
        found: dict[str, int] = {}
        for axis, (size, known) in enumerate(zip(sizes, port.shape, strict=True)):
            if isinstance(known, int) and known != size:
                raise ConfigError(f"{text!r}: the graph fixes size {axis} at {known}", where="--shape")
            if not isinstance(known, int) and (axis > 0 or not batched) and found.setdefault(known, size) != size:
                raise ConfigError(f"{text!r}: {known!r} is {found[known]} and {size}", where="--shape")
        if not found:
            raise ConfigError(f"{text!r} has no effect: all sizes of {name!r} but the batch are fixed", where="--shape")
        turns.setdefault(name, []).append(found)
    merged: list[dict[str, int]] = []
    for turn in itertools.zip_longest(*turns.values()):
        sizes_of_turn: dict[str, int] = {}
        for one in filter(None, turn):
            for key, size in one.items():
                if sizes_of_turn.setdefault(key, size) != size:
                    raise ConfigError(f"{key!r} is {sizes_of_turn[key]} and {size}", where="--shape")
        merged.append({**(merged[0] if merged else {}), **sizes_of_turn})
    for one in merged:
        left = [name for name in free_names(build) if name not in one]
        if left:
            raise ConfigError(f"size {left[0]!r} stays free", where="--shape", hint="give every input that has it")
    return merged


def read_samples(path: Path, build: BuildDocument) -> SampleSet:
    """Read a .npz of one array [samples, ...] for each input, or a .npy for a network with one.

    Raises:
        InputError: The file is unreadable, or its arrays are not the network's inputs.
    """
    arrays = _load(path, build.inputs)
    batched = has_dynamic_batch(build)
    names = {port.name for port in build.inputs}
    wrong = [f"it has no {name}" for name in sorted(names - arrays.keys())]
    wrong += [f"the network has no input {name}" for name in sorted(arrays.keys() - names)]
    found: dict[str, Array] = {}
    sizes: dict[str, int] = {}
    for port in build.inputs:
        if port.name not in arrays:
            continue
        array, shape, dtype = arrays[port.name], port.shape[batched:], np.dtype(numpy_type(port.dtype))
        fits = len(array.shape) == len(shape) + 1 and all(
            size == known if isinstance(known, int) else size == sizes.setdefault(known, size)
            for size, known in zip(array.shape[1:], shape, strict=True)
        )
        if not fits or not len(array):
            wrong.append(f"{port.name} is {list(array.shape)}, not [samples, {', '.join(map(str, shape))}]")
        elif not _converts(array, dtype):
            wrong.append(f"{port.name} is {array.dtype}, not {dtype}")
        else:
            found[port.name] = np.ascontiguousarray(array, dtype=dtype)
    if len({len(array) for array in found.values()}) > 1:
        wrong.append("its arrays hold different numbers of samples")
    if wrong:
        raise InputError("; ".join(wrong), where=path, hint="save one array for each input with numpy.savez")
    count = len(next(iter(found.values())))
    return SampleSet(
        groups=(Samples(batched=batched, count=count, arrays=found),), origin=f"all {count} samples of {path.name}"
    )


def _load(path: Path, inputs: Sequence[GraphPort]) -> dict[str, Array]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {inputs[0].name if len(inputs) == 1 else "(one array without a name)": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise InputError("no such file", where=path, hint="save the samples with numpy.savez") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"no readable .npz: {error}", where=path, hint="save it with numpy.savez") from None


def _converts(array: Array, dtype: np.dtype[Any]) -> bool:
    """Whether values keep their meaning: the same kind, and integers within the type's range."""
    if dtype.kind == "f":
        return array.dtype.kind == "f"
    if dtype.kind == "b" or array.dtype.kind not in "iu":
        return array.dtype.kind == dtype.kind
    limits = np.iinfo(dtype)
    return not array.size or (int(array.min()) >= limits.min and int(array.max()) <= limits.max)


def _own_data(build: BuildDocument, count: int, data_dir: Path | None) -> tuple[dict[str, Array], str]:
    if build.source.data is None or len(build.inputs) != 1 or numpy_type(build.inputs[0].dtype) != "float32":
        return {}, ""
    from nm2trt.data import load_data_for

    port = build.inputs[0]
    shape = tuple(size for size in port.shape[1:] if isinstance(size, int))
    x_BX = load_data_for(build.source.data, shape, data_dir).test_samples(count)
    if x_BX.shape[1:] != shape:
        return {}, ""
    samples = np.ascontiguousarray(x_BX, dtype=np.float32)
    return {port.name: samples}, f"first {len(samples)} test samples of {build.source.data}"


def _draw(
    inputs: Sequence[GraphPort], limits: Limits, sizes: Mapping[str, int], count: int, *, batched: bool, most: int
) -> Samples:
    """Draw samples of one shape."""
    shapes = {
        port.name: tuple(size if isinstance(size, int) else sizes[size] for size in port.shape[batched:])
        for port in inputs
    }
    total, arrays = draw_arrays(inputs, limits, shapes, count, most=most)
    label = ", ".join(f"{name} {size}" for name, size in sizes.items())
    return Samples(batched=batched, count=total, arrays=arrays, label=label)


def requests_of(samples: SampleSet, sizes: Sequence[int]) -> Iterator[tuple[str, Feed]]:
    """All requests of a check, with a name for each: every sample once at the largest batch, fewer at the others.

    Then samples come again, at every size in between, until there are enough requests to meet a server that fails one
    of a hundred, for a few seconds at most.
    """
    largest = max(sizes)
    number = 0
    named = list(_named(samples))
    for group, prefix in named:
        if not group.batched:
            for at in range(group.count):
                number += 1
                yield f"{prefix}sample {at}", group.feed(at)
            continue
        for size in sizes:
            last = group.count if size == largest else min(group.count, SAMPLES)
            for at in range(0, last, size):
                number += 1
                yield f"{prefix}samples from {at}, batch {size}", group.feed(at, size)
    end = time.monotonic() + _AGAIN_S
    every = range(min(sizes), largest + 1)
    between = [size for size in every if size not in sizes]
    for turn in itertools.count():
        # Every size between once, however many requests there were already.
        if time.monotonic() > end or (turn >= len(between) and number >= ENOUGH_REQUESTS):
            return
        group, prefix = named[turn % len(named)]
        number += 1
        size = between[turn] if turn < len(between) else every[turn % len(every)]
        if not group.batched:
            yield f"{prefix}sample {turn % group.count} again", group.feed(turn)
            continue
        at = turn * size % group.count
        yield f"{prefix}samples from {at} again, batch {size}", group.feed(at, size)


def _named(samples: SampleSet) -> Iterator[tuple[Samples, str]]:
    for group in samples.groups:
        yield group, f"{group.label}, " if group.label else ""
