"""Folders of small images; imported as `from image_files import ...`."""

import numpy as np
from PIL import Image


def write_images(folder, classes=("cat", "dog"), train=6, val=3, size=20):
    """Make train/CLASS/* and val/CLASS/*: noise around a gray of the class, in several formats and modes."""
    numbers = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = numbers.integers(0, 60, (size, size + index, 3)) + 180 * label
                image = Image.fromarray(pixels.astype(np.uint8))
                image = image.convert(("RGB", "L", "RGBA")[index % 3])
                image.save(folder / part / name / f"{index}.png")
    return folder
