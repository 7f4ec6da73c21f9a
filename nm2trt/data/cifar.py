"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 60,000 color photographs, 32x32, read or downloaded by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nm2trt.data.cache import cache_folder
from nm2trt.data.dataset import DataSet
from nm2trt.data.samples import ArraySamples
from nm2trt.errors import InputError
from nm2trt.library_errors import one_line

_PADDING = 4


def load_cifar(classes: int, data_dir: Path | None) -> DataSet:
    """Load CIFAR-10 or -100; training images are cropped out of 4 pixels of padding and flipped at random.

    Args:
        classes: 10 or 100.
        data_dir: Holds the unpacked archive, or gets it; None uses nm2trt's cache.

    Raises:
        InputError: The files are not there and cannot be downloaded, or are corrupt.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    name = f"cifar{classes}"
    if data_dir is not None and not data_dir.is_dir():
        raise InputError("the data folder does not exist", where=data_dir, hint="make it, or leave --data-dir out")
    root = data_dir if data_dir is not None else cache_folder()
    kind = CIFAR10 if classes == 10 else CIFAR100
    try:
        train, test = (kind(str(root), train=part, download=True) for part in (True, False))
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{name} is not there whole and the download failed: {one_line(error)}",
            where=root,
            hint=f"unpack its python archive ({kind.base_folder}) into the folder of --data-dir",
        ) from None
    x_NCHW = train.data.transpose(0, 3, 1, 2)
    convert = Standardize(x_NCHW)
    return DataSet(
        name=name,
        source="torchvision, its archive",
        classes=classes,
        input_shape=(3, *x_NCHW.shape[2:]),
        train=ArraySamples(x_NCHW, _labels(train), name=f"{name} train", convert=convert, augment=crop_and_flip),
        test=ArraySamples(test.data.transpose(0, 3, 1, 2), _labels(test), name=f"{name} test", convert=convert),
    )


class Standardize:
    """Bytes [B, C, H, W] -> float32 of mean 0 and deviation 1 in each channel of the training images.

    Args:
        x_NCHW: All training images, uint8.
    """

    def __init__(self, x_NCHW: NDArray[np.uint8]) -> None:
        values = np.arange(256) / 255
        counts_CV = np.stack([np.bincount(x_NCHW[:, c].reshape(-1), minlength=256) for c in range(x_NCHW.shape[1])])
        share_CV = counts_CV / counts_CV.sum(axis=1, keepdims=True)
        mean_C = share_CV @ values
        std_C = np.sqrt(share_CV @ values**2 - mean_C**2)
        self._scale_C11 = torch.from_numpy(1 / (255 * std_C)).float()[:, None, None]
        self._shift_C11 = torch.from_numpy(mean_C / std_C).float()[:, None, None]

    def __call__(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Convert one batch."""
        return x_BCHW * self._scale_C11 - self._shift_C11


def crop_and_flip(x_BCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Crop each image at its own place out of itself padded with 4 zeros, and mirror half of them.

    He et al. 2016, section 4.2.
    """
    B, C, H, W = x_BCHW.shape
    padded = torch.nn.functional.pad(x_BCHW, (_PADDING,) * 4)
    top_B, left_B = torch.randint(2 * _PADDING + 1, (2, B), generator=generator)
    mirror_B = torch.randint(2, (B,), generator=generator).bool()
    rows_BH = top_B[:, None] + torch.arange(H)
    columns_BW = left_B[:, None] + torch.arange(W)
    columns_BW = torch.where(mirror_B[:, None], columns_BW.flip(1), columns_BW)
    return padded[
        torch.arange(B)[:, None, None, None],
        torch.arange(C)[None, :, None, None],
        rows_BH[:, None, :, None],
        columns_BW[:, None, None, :],
    ]


def _labels(dataset: Any) -> NDArray[np.int64]:
    return np.asarray(dataset.targets, dtype=np.int64)
