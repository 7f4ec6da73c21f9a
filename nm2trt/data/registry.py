"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from nm2trt.data.cifar import load_cifar
from nm2trt.data.cmudict import load_cmudict
from nm2trt.data.dataset import DataSet
from nm2trt.data.digits import load_digits
from nm2trt.data.fashion_mnist import load_fashion_mnist
from nm2trt.data.image_folder import load_image_folder
from nm2trt.data.own import load_own
from nm2trt.errors import ConfigError
from nm2trt.user_code import is_reference

Loader = Callable[[Path | None], DataSet]

_LOADERS: dict[str, Loader] = {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": partial(load_cifar, 10),
    "cifar100": partial(load_cifar, 100),
    "imagefolder": load_image_folder,
    "cmudict": lambda _: load_cmudict(),
}
_SIZED = "imagefolder"


def data_names() -> list[str]:
    """Names that `load_data` takes, beside `package.module:function`."""
    return sorted(_LOADERS)


def check_data(name: str, *, image_size: int | None = None, randaugment: bool = False) -> None:
    """Check a name and its options without reading anything.

    Raises:
        ConfigError: The name is unknown, or an option is not for it.
    """
    if name not in _LOADERS and not is_reference(name):
        choices = f"choose from {', '.join(data_names())}, or name package.module:function"
        raise ConfigError(f"unknown data set {name!r}, {choices}")
    if name != _SIZED:
        for option, given in (("image_size", image_size is not None), ("randaugment", randaugment)):
            if given:
                raise ConfigError(f"{option} is for {_SIZED}, not for {name}")


def load_data(
    name: str, data_dir: Path | None = None, *, image_size: int | None = None, randaugment: bool = False
) -> DataSet:
    """Load or open a data set.

    Args:
        name: One of `data_names()`, or `package.module:function` (see `nm2trt.data.own`).
        data_dir: Where its files are, or are to be downloaded to; None uses the usual places.
        image_size: Height and width of a sample of `imagefolder`.
        randaugment: Use RandAugment on the training images of `imagefolder`.

    Raises:
        ConfigError: The name is unknown, or an option is not for it.
        InputError: The files are missing or corrupt.
    """
    check_data(name, image_size=image_size, randaugment=randaugment)
    if name == _SIZED:
        return load_image_folder(data_dir, image_size=image_size, randaugment=randaugment)
    return _LOADERS[name](data_dir) if name in _LOADERS else load_own(name, data_dir)


def load_data_for(name: str, input_shape: tuple[int, ...], data_dir: Path | None = None) -> DataSet:
    """Load a data set with samples of a trained network's shape, where the data set leaves it open."""
    return load_data(name, data_dir, image_size=input_shape[-1] if name == _SIZED else None)
