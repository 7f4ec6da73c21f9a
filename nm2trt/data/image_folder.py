"""Photographs in folders, one for each class, as ImageNet is laid out: train/CLASS/*, val/CLASS/*."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nm2trt.data.dataset import DataSet
from nm2trt.data.samples import LazySamples
from nm2trt.errors import ConfigError, InputError

DEFAULT_IMAGE_SIZE = 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, 0..1 (torchvision's reference; its pretrained weights expect them)."""
_RESIZE = 256 / 224
_LAYOUT = "lay it out as train/CLASS/IMAGE and val/CLASS/IMAGE"


def load_image_folder(data_dir: Path | None, *, image_size: int | None = None, randaugment: bool = False) -> DataSet:
    """Open a folder of images; files are read as batches need them.

    Training images are cropped at random (torchvision's RandomResizedCrop), flipped, and with `randaugment` altered
    (Cubuk et al. 2020). Test images are resized to 8/7 of the size and cropped in the middle.

    Args:
        data_dir: Holds train/ and val/.
        image_size: Height and width of a sample; default 224.
        randaugment: Use RandAugment.

    Raises:
        ConfigError: There is no `data_dir`.
        InputError: The folder has no classes or no images, or the first ones cannot be read.
    """
    if data_dir is None:
        raise ConfigError("imagefolder needs the folder of its images", where="data_dir", hint="give --data-dir")
    size = image_size or DEFAULT_IMAGE_SIZE
    classes = _class_names(data_dir / "train")
    if unknown := [name for name in _class_names(data_dir / "val") if name not in classes]:
        raise InputError(f"class {unknown[0]!r} is not in train", where=data_dir / "val", hint=_LAYOUT)
    train = _ImageFiles(data_dir / "train", classes, _training_transform(size, randaugment))
    test = _ImageFiles(data_dir / "val", classes, _test_transform(size))
    without = sorted(set(range(len(classes))) - set(train.labels.tolist()))
    if without:
        raise InputError("has no image", where=data_dir / "train" / classes[without[0]], hint="add some, or remove it")
    return DataSet(
        name="imagefolder",
        source=f"images in --data-dir, {len(classes)} classes",
        classes=len(classes),
        input_shape=(3, size, size),
        train=LazySamples(train, name="imagefolder train", classes=len(classes)),
        test=LazySamples(test, name="imagefolder val", classes=len(classes)),
    )


class _ImageFiles(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Images of a folder, decoded when they are asked for."""

    def __init__(self, folder: Path, classes: list[str], transform: Any) -> None:
        from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

        index = {name: number for number, name in enumerate(classes)}
        found = make_dataset(str(folder), index, extensions=IMG_EXTENSIONS, allow_empty=True)
        if not found:
            raise InputError(f"has no image ({', '.join(IMG_EXTENSIONS)})", where=folder, hint=_LAYOUT)
        self._folder = folder
        # One array: a list of a million strings is copied by every worker, as it counts references to them.
        self._paths = np.array([os.fsencode(os.path.relpath(path, folder)) for path, _ in found])
        self.labels = np.array([label for _, label in found], dtype=np.int64)
        self._transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        path = self._folder / os.fsdecode(bytes(self._paths[index]))
        try:
            with Image.open(path) as image:
                pixels = image.convert("RGB")
        # PIL raises these for files that are cut, of another kind, or decompression bombs.
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = str(error).replace(str(path), path.name)
            raise InputError(f"no readable image: {reason}", where=path, hint="replace or remove it") from None
        return self._transform(pixels), int(self.labels[index])


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError("no such folder", where=folder, hint=_LAYOUT)
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not names:
        raise InputError("has no class folders", where=folder, hint=_LAYOUT)
    return names


def _training_transform(size: int, randaugment: bool) -> Any:
    from torchvision.transforms import v2

    altered = [v2.RandAugment()] if randaugment else []
    return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *altered, *_to_tensor()])


def _test_transform(size: int) -> Any:
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize(round(size * _RESIZE)), v2.CenterCrop(size), *_to_tensor()])


def _to_tensor() -> list[Any]:
    from torchvision.transforms import v2

    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]
