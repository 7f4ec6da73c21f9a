"""The data sets by name. Images are float32 NCHW, labels int64; preprocessing is done once, at load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.data.digits import load_digits
from nm2trt.data.fashion_mnist import load_fashion_mnist
from nm2trt.errors import ConfigError, InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """A classification data set in memory."""

    name: str
    source: str
    """Where the samples came from, for the records; no path of the machine."""
    classes: int
    train_x_NCHW: NDArray[np.float32]
    train_y_N: NDArray[np.int64]
    test_x_NCHW: NDArray[np.float32]
    test_y_N: NDArray[np.int64]

    def __post_init__(self) -> None:
        for part, x_NCHW, y_N in (
            ("train", self.train_x_NCHW, self.train_y_N),
            ("test", self.test_x_NCHW, self.test_y_N),
        ):
            if len(x_NCHW) != len(y_N) or not len(y_N):
                raise InputError(f"{part}: {len(x_NCHW)} images and {len(y_N)} labels", where=self.name)
            if y_N.min() < 0 or y_N.max() >= self.classes:
                bad = int(np.flatnonzero((y_N < 0) | (y_N >= self.classes))[0])
                raise InputError(
                    f"{part} label {bad} is {int(y_N[bad])}, outside 0..{self.classes - 1}", where=self.name
                )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample, [C, H, W]."""
        return tuple(self.train_x_NCHW.shape[1:])


Loader = Callable[[Path | None], dict[str, Any]]

_LOADERS: dict[str, Loader] = {"digits": load_digits, "fashion-mnist": load_fashion_mnist}


def data_names() -> list[str]:
    """Names that `load_data` takes."""
    return sorted(_LOADERS)


def load_data(name: str, data_dir: Path | None = None) -> DataSet:
    """Load a data set whole into memory.

    Args:
        name: One of `data_names()`.
        data_dir: Where its files are, or are to be downloaded to; None uses the usual places.

    Raises:
        ConfigError: The name is unknown.
        InputError: The files are missing or corrupt.
    """
    if name not in _LOADERS:
        raise ConfigError(f"unknown data set {name!r}", where="data", mend=f"choose from {', '.join(data_names())}")
    return DataSet(name=name, **_LOADERS[name](data_dir))
