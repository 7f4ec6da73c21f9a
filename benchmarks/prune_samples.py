"""Samples for `benchmarks/prune.py`: other training samples for every seed, and inputs of packaged networks.

`--data prune_samples:fashion_mnist_3` names the training samples as seed 3 sees them; the test samples are held out.
"""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.data import DataSet, load_data

SEEDS = 5
_MAGIKA_HALF, _MAGIKA_PADDING = 1024, 256


@dataclass(frozen=True)
class ShiftedSamples:
    """The same samples from another place on, so that the same indices give others."""

    samples: Any
    shift: int

    @property
    def in_memory(self) -> bool:
        return bool(self.samples.in_memory)

    def __len__(self) -> int:
        return len(self.samples)

    def fetch(self, keys: Sequence[int], seed: int) -> Any:
        return self.samples.fetch([(key + self.shift) % len(self) for key in keys], seed)


@cache
def _read(name: str) -> DataSet:
    return load_data(name)


def _of_seed(name: str, seed: int) -> DataSet:
    data = _read(name)
    return replace(data, train=ShiftedSamples(data.train, seed * len(data.train) // SEEDS))


def __getattr__(name: str) -> Callable[[], DataSet]:
    kind, _, seed = name.rpartition("_")
    if kind not in ("fashion_mnist", "cmudict") or not seed.isdecimal():
        raise AttributeError(name)
    return partial(_of_seed, kind.replace("_", "-"), int(seed))


def draw_words(count: int, seed: int) -> dict[str, NDArray[Any]]:
    """Random words and numbers, drawn with Pillow's own font, as the text recognizer wants them: [N, 3, 48, 160]."""
    from PIL import Image, ImageDraw, ImageFont

    rng, font = random.Random(seed), ImageFont.load_default(28)
    x_NCHW = np.empty((count, 3, 48, 160), np.float32)
    for one_CHW in x_NCHW:
        text = "".join(
            rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=rng.randint(3, 9))
        )
        image = Image.new("L", (160, 48), rng.randint(180, 255))
        ImageDraw.Draw(image).text((rng.randint(0, 12), rng.randint(2, 12)), text, fill=rng.randint(0, 90), font=font)
        one_CHW[:] = np.asarray(image, np.float32) / 127.5 - 1
    return {"x": x_NCHW}


def read_bytes(count: int, seed: int) -> dict[str, NDArray[Any]]:
    """First and last bytes of pieces of the standard library's files, as Magika reads files: [N, 2048] int32."""
    rng = random.Random(seed)
    files = sorted(path for path in Path(sysconfig.get_path("stdlib")).glob("**/*.*") if path.is_file())
    x_NT = np.full((count, 2 * _MAGIKA_HALF), _MAGIKA_PADDING, np.int32)
    for one_T in x_NT:
        content = b""
        while len(content) < 16:
            content = rng.choice(files).read_bytes()[: 1 << 20]
            content = content[: rng.randint(16, max(16, len(content)))].strip()
        first, last = content[:_MAGIKA_HALF], content[-_MAGIKA_HALF:]
        one_T[: len(first)] = np.frombuffer(first, np.uint8)
        one_T[len(one_T) - len(last) :] = np.frombuffer(last, np.uint8)
    return {"bytes": x_NT}
