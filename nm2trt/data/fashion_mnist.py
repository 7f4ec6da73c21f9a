"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017; MIT): 70,000 gray images of clothing, 28x28.

The four idx files are taken from `--data-dir`, from Debian's package dataset-fashion-mnist, or downloaded by
torchvision, in that order. Debian recompresses the files, so their md5 differs and torchvision refuses them;
they are read here instead.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nm2trt.data.cache import cache_folder
from nm2trt.data.dataset import DataSet
from nm2trt.data.idx import read_idx
from nm2trt.errors import InputError
from nm2trt.library_errors import one_line

_FILES = {
    "train_x": "train-images-idx3-ubyte",
    "train_y": "train-labels-idx1-ubyte",
    "test_x": "t10k-images-idx3-ubyte",
    "test_y": "t10k-labels-idx1-ubyte",
}
_BELOW = (".", "FashionMNIST/raw", "raw", "fashion-mnist")
_MEAN, _STD = 0.2860, 0.3530
"""Of the training pixels, 0..1; `tests/data/test_fashion_mnist.py` computes them from the files."""


def load_fashion_mnist(data_dir: Path | None) -> DataSet:
    """Load all four files; images are [N, 1, 28, 28], standardized.

    Raises:
        InputError: Files are missing and cannot be downloaded, or are corrupt.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise InputError("the data folder does not exist", where=data_dir, hint="make it, or leave --data-dir out")
    folder = _find(data_dir)
    source = "idx files in --data-dir" if data_dir is not None else "Debian dataset-fashion-mnist"
    if folder is None:
        folder, source = _download(data_dir), "torchvision download"
    arrays = {part: read_idx(_present(folder, stem)) for part, stem in _FILES.items()}
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_x"], arrays[f"{part}_y"]
        if images.ndim != 3 or images.dtype != np.uint8 or labels.ndim != 1:
            raise InputError(
                f"expected [N, H, W] bytes and [N] labels, found {images.shape} {images.dtype} and {labels.shape}",
                where=folder / _FILES[f"{part}_x"],
                hint="fetch the files again",
            )
    return DataSet.from_arrays(
        name="fashion-mnist",
        source=source,
        classes=10,
        train_x_NX=_standardized(arrays["train_x"]),
        train_y_N=arrays["train_y"].astype(np.int64),
        test_x_NX=_standardized(arrays["test_x"]),
        test_y_N=arrays["test_y"].astype(np.int64),
    )


def system_folder() -> Path | None:
    """Where a distribution's package put the files, or None."""
    shares = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    for share in shares.split(":"):
        folder = Path(share) / "datasets" / "fashion-mnist"
        if share and _is_complete(folder):
            return folder
    return None


def _find(data_dir: Path | None) -> Path | None:
    if data_dir is None:
        return system_folder() or next(
            (folder for folder in (cache_folder() / below for below in _BELOW) if _is_complete(folder)), None
        )
    folders = [data_dir / below for below in _BELOW]
    complete = next((folder for folder in folders if _is_complete(folder)), None)
    if complete is None:
        for folder in folders:
            missing = [stem for stem in _FILES.values() if _existing(folder, stem) is None]
            if len(missing) < len(_FILES):
                raise InputError(
                    f"{missing[0]} is missing",
                    where=folder,
                    hint="add it (plain or .gz), or empty the folder",
                )
    return complete


def _existing(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)


def _present(folder: Path, stem: str) -> Path:
    return _existing(folder, stem) or folder / stem


def _is_complete(folder: Path) -> bool:
    return all(_existing(folder, stem) is not None for stem in _FILES.values())


def _download(data_dir: Path | None) -> Path:
    from torchvision.datasets import FashionMNIST

    root = data_dir if data_dir is not None else cache_folder()
    try:
        FashionMNIST(str(root), train=True, download=True)
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"Fashion-MNIST is not on this machine and the download failed: {one_line(error)}",
            where=root,
            hint="give the folder of its four idx files with --data-dir, or install Debian's dataset-fashion-mnist",
        ) from None
    return root / "FashionMNIST" / "raw"


def _standardized(images_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
    scaled = images_NHW.astype(np.float32)
    scaled /= np.float32(255)
    scaled -= np.float32(_MEAN)
    scaled /= np.float32(_STD)
    return scaled[:, None]
