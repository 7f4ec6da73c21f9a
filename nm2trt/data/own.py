"""A data set that a function of the user's own returns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, TensorDataset

from nm2trt.data.dataset import DataSet
from nm2trt.data.samples import ArraySamples, LazySamples, Samples
from nm2trt.errors import InputError
from nm2trt.user_code import call, load_function

_PAIR = "return a nm2trt.data.DataSet, or (train, test) of map-style torch data sets"


def load_own(reference: str, data_dir: Path | None) -> DataSet:
    """Call `package.module:function` and check what it returns.

    The function may take the keyword `data_dir`. It returns a `DataSet`, or a pair (train, test) of map-style torch
    data sets whose items are (x float [*input_shape], integer label). The number of classes is the length of
    train's `classes`, or one more than the largest of its `targets`, as torchvision's data sets have them. A
    `TensorDataset` is kept in memory; others are read sample by sample, in worker processes.

    Raises:
        ConfigError: There is no such function.
        InputError: It raised, or returned something else.
    """
    found = call(load_function(reference, "data"), reference, "data", {"data_dir": data_dir})
    if isinstance(found, DataSet):
        return replace(found, name=reference)
    where = f"data {reference}"
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise InputError(f"returned {type(found).__name__}", where=where, hint=_PAIR)
    for part, dataset in zip(("train", "test"), found, strict=True):
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        ):
            raise InputError(
                f"its {part} is {type(dataset).__name__}, without length or index", where=where, hint=_PAIR
            )
    train, test = found
    classes = _classes(train, where)
    train_samples = _samples(train, f"{reference} train", classes, None)
    input_shape = tuple(train_samples.fetch([0], 0)[0].shape[1:])
    return DataSet(
        name=reference,
        source=reference,
        classes=classes,
        input_shape=input_shape,
        train=train_samples,
        test=_samples(test, f"{reference} test", classes, input_shape),
    )


def _samples(dataset: Any, name: str, classes: int, input_shape: tuple[int, ...] | None) -> Samples:
    if type(dataset) is not TensorDataset:
        return LazySamples(dataset, name=name, classes=classes, input_shape=input_shape)
    if len(dataset.tensors) != 2:
        raise InputError(f"has {len(dataset.tensors)} tensors and not 2, x and labels", where=name)
    x_NX, y_N = dataset.tensors
    if not x_NX.is_floating_point():
        raise InputError(f"x is {x_NX.dtype}", where=name, hint="scale it to float32")
    if y_N.is_floating_point() or y_N.dtype == torch.bool:
        raise InputError(f"labels are {y_N.dtype} and no integers", where=name)
    return ArraySamples(x_NX.float(), y_N.long(), name=name)


def _classes(train: Any, where: str) -> int:
    """Count the classes from what torch data sets say of themselves."""
    named = getattr(train, "classes", None)
    if isinstance(named, int):
        count = named
    elif named is not None and hasattr(named, "__len__"):
        count = len(named)
    else:
        labels = train.tensors[-1] if isinstance(train, TensorDataset) else getattr(train, "targets", None)
        if labels is None or not len(labels):
            raise InputError(
                "nothing tells the number of classes",
                where=where,
                hint="give train a `classes` list, or return a DataSet",
            )
        count = int(torch.as_tensor(labels).max()) + 1
    if count < 2:
        raise InputError(f"has {count} class(es)", where=where, hint="training needs two or more")
    return count
