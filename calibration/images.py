"""A folder of images with a stated preprocessing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.calibration.feeds import Batch, Split, check_feed, chunks
from nm2trt.calibration.graph import Port
from nm2trt.errors import ConfigError, InputError

_IMAGENET = "resize=256 crop=224 mean=0.485,0.456,0.406 std=0.229,0.224,0.225"
_HINT = (
    "write KEY=VALUE pairs: resize=N (shorter side) or size=HxW, crop=N, mean=R,G,B, std=R,G,B (of 0..1), "
    "color=rgb|bgr|gray, layout=nchw|nhwc"
)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a file's pixels to the network's input, in this order: resize, crop, scale to 0..1, standardize."""

    text: str
    """As given, for the record."""
    resize: int | None = None
    """Length of the shorter side, bilinear and antialiased."""
    size: tuple[int, int] | None = None
    """Height and width, whatever the image's shape."""
    crop: int | None = None
    """Side of the square cut out of the middle."""
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    color: str = "rgb"
    layout: str = "nchw"

    @classmethod
    def parse(cls, text: str) -> Preprocessing:
        """Read `imagenet` or pairs like `resize=256 crop=224 mean=0.5,0.5,0.5 std=0.5,0.5,0.5 color=bgr`.

        Raises:
            ConfigError: A key is unknown or a value is not for it.
        """
        fields: dict[str, Any] = {}
        for pair in (_IMAGENET if text == "imagenet" else text).split():
            key, _, value = pair.partition("=")
            try:
                fields[key] = _READERS[key](value)
            except KeyError:
                raise ConfigError(f"unknown {key!r}", where="--preprocess", hint=_HINT) from None
            except ValueError:
                raise ConfigError(f"{pair!r} cannot be read", where="--preprocess", hint=_HINT) from None
        channels = 1 if fields.get("color") == "gray" else 3
        for key in ("mean", "std"):
            if key in fields and len(fields[key]) not in (1, channels):
                raise ConfigError(f"{key} has {len(fields[key])} values", where="--preprocess", hint=f"give {channels}")
        if 0 in fields.get("std", ()):
            raise ConfigError("std holds 0", where="--preprocess", hint="leave it out, or give what it is")
        return cls(text=text, **fields)

    def apply(self, image: Any) -> NDArray[np.float32]:
        """Turn a PIL image into float32 [C, H, W] or [H, W, C]."""
        from torchvision.transforms.v2 import functional

        image = image.convert("L" if self.color == "gray" else "RGB")
        if self.size is not None:
            image = functional.resize(image, list(self.size))
        elif self.resize is not None:
            image = functional.resize(image, [self.resize])
        if self.crop is not None:
            image = functional.center_crop(image, [self.crop])
        x_HWC = np.asarray(image, np.float32).reshape(image.height, image.width, -1) / 255
        if self.color == "bgr":
            x_HWC = x_HWC[..., ::-1]
        x_HWC = (x_HWC - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(x_HWC if self.layout == "nhwc" else x_HWC.transpose(2, 0, 1), np.float32)


class ImageSource:
    """Images below a folder, read when a batch needs them.

    Folder names are no labels: nothing tells how the network numbers its classes.

    Args:
        folder: Searched with all folders below it.
        preprocessing: Stated by the user.
        port: The network's only input.
        samples: Most samples to calibrate with.
        held_out: Maximum number of held-out evaluation samples.

    Raises:
        InputError: There are fewer than two images, or one cannot be read or has another shape than the input.
    """

    task = None

    def __init__(self, folder: Path, preprocessing: Preprocessing, port: Port, samples: int, held_out: int) -> None:
        from torchvision.datasets.folder import IMG_EXTENSIONS

        found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMG_EXTENSIONS)
        self._paths = [path for path in found if path.is_file()]
        if not self._paths:
            raise InputError(f"has no image ({', '.join(IMG_EXTENSIONS)})", where=folder)
        self._port, self._preprocessing, self._folder = port, preprocessing, folder
        self._split = Split.of(len(self._paths), samples, held_out, folder)
        check_feed({port.name: self._read(0)[None]}, [port], f"{self._paths[0].name} after --preprocess")
        self.words = (
            f"{len(self._split.calibration)} images, held out {len(self._split.held_out)}; "
            f"preprocessing: {preprocessing.text}"
        )

    def calibration(self, size: int) -> Iterator[Batch]:
        """See `Source`."""
        return self._batches(self._split.calibration, size)

    def held_out(self, size: int) -> Iterator[Batch]:
        """See `Source`."""
        return self._batches(self._split.held_out, size)

    def _batches(self, indices: NDArray[np.int64], size: int) -> Iterator[Batch]:
        for keys in chunks(indices, size, self._port.batch):
            arrays = [self._read(int(key)) for key in keys]
            for key, array in zip(keys, arrays, strict=True):
                if array.shape != arrays[0].shape:
                    raise InputError(
                        f"is {list(array.shape)}, others are {list(arrays[0].shape)}",
                        where=self._paths[int(key)],
                        hint="bring all to one shape with size=HxW, or resize= and crop=",
                    )
            yield Batch({self._port.name: np.stack(arrays)}, len(keys))

    def _read(self, index: int) -> NDArray[Any]:
        from PIL import Image

        path = self._paths[index]
        try:
            with Image.open(path) as image:
                return self._preprocessing.apply(image).astype(self._port.dtype)
        # PIL raises these for files that are cut, of another kind, or decompression bombs.
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = str(error).replace(str(path), path.name)
            raise InputError(f"no readable image: {reason}", where=path, hint="replace or remove it") from None


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _pair(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return _positive(height), _positive(width or height)


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _choice(*known: str) -> Any:
    def read(text: str) -> str:
        if text not in known:
            raise ValueError(text)
        return text

    return read


_READERS: dict[str, Any] = {
    "resize": _positive,
    "size": _pair,
    "crop": _positive,
    "mean": _floats,
    "std": _floats,
    "color": _choice("rgb", "bgr", "gray"),
    "layout": _choice("nchw", "nhwc"),
}
