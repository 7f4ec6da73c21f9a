"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nm2trt.data.dataset import DataSet
from nm2trt.data.digits import load_digits
from nm2trt.data.fashion_mnist import load_fashion_mnist
from nm2trt.errors import ConfigError

Loader = Callable[[Path | None], DataSet]

_LOADERS: dict[str, Loader] = {"digits": load_digits, "fashion-mnist": load_fashion_mnist}


def data_names() -> list[str]:
    """Names that `load_data` takes."""
    return sorted(_LOADERS)


def load_data(name: str, data_dir: Path | None = None) -> DataSet:
    """Load or open a data set.

    Args:
        name: One of `data_names()`.
        data_dir: Where its files are, or are to be downloaded to; None uses the usual places.

    Raises:
        ConfigError: The name is unknown.
        InputError: The files are missing or corrupt.
    """
    if name not in _LOADERS:
        raise ConfigError(f"unknown data set {name!r}", where="data", mend=f"choose from {', '.join(data_names())}")
    return _LOADERS[name](data_dir)
