"""Handwritten digits, 8x8, 1,797 images: inside scikit-learn's wheel, so they are always there.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository; BSD-3 in scikit-learn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nm2trt.data.dataset import DataSet

_LARGEST_PIXEL = 16.0
_TEST_SHARE = 0.25


def load_digits(data_dir: Path | None) -> DataSet:  # noqa: ARG001 -- the data is inside a package
    """Load the digits [N, 1, 8, 8], split 3:1 by class with a fixed seed, scaled to 0..1 and standardized."""
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    bunch = sklearn_digits()
    x_NCHW = (bunch.images[:, None] / _LARGEST_PIXEL).astype(np.float32)
    y_N = bunch.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(
        x_NCHW, y_N, test_size=_TEST_SHARE, stratify=y_N, random_state=0
    )
    mean, std = float(train_x.mean()), float(train_x.std())
    return DataSet.from_arrays(
        name="digits",
        source="scikit-learn load_digits",
        classes=10,
        train_x_NX=(train_x - mean) / std,
        train_y_N=train_y,
        test_x_NX=(test_x - mean) / std,
        test_y_N=test_y,
    )
