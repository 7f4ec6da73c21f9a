"""The data sets of the paper's comparison, read once for all runs of a process; `--data paper_data:cmudict`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from nm2trt.data import DataSet, load_data
from nm2trt.data.samples import ArraySamples

_PART_TRAIN, _PART_TEST = 10_000, 3_000
"""What a run of a few CPU minutes takes."""


@cache
def fashion_mnist() -> DataSet:
    return load_data("fashion-mnist")


@cache
def cmudict() -> DataSet:
    return load_data("cmudict")


@cache
def fashion_mnist_part() -> DataSet:
    return evenly_spaced(fashion_mnist())


@cache
def cmudict_part() -> DataSet:
    return evenly_spaced(cmudict())


def evenly_spaced(whole: DataSet) -> DataSet:
    """A part of a data set from its start to its end, since words are sorted."""
    counts = (len(whole.train), _PART_TRAIN), (len(whole.test), _PART_TEST)
    train, test = ([index * there // taken for index in range(taken)] for there, taken in counts)
    return part_of(whole, train, test)


def part_of(whole: DataSet, train: Sequence[int], test: Sequence[int]) -> DataSet:
    """The samples at these places of a data set in memory.

    Args:
        whole: The data set; its training samples are not augmented in the part.
        train: Places of training samples.
        test: Places of test samples.
    """
    taken = {
        name: ArraySamples(*samples.fetch(places, 0), name=f"{whole.name} {name}")
        for name, samples, places in (("train", whole.train, train), ("test", whole.test, test))
    }
    return DataSet(
        name=f"part of {whole.name}",
        source=whole.source,
        classes=whole.classes,
        input_shape=whole.input_shape,
        task=whole.task,
        **taken,
    )
