"""Samples in memory, fetched a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

Batch = tuple[torch.Tensor, torch.Tensor]


class _Arrays(Dataset[Batch]):
    """Answers a whole batch of indices with one gather; per-sample fetches dominate small networks."""

    def __init__(self, x_NCHW: NDArray[np.float32], y_N: NDArray[np.int64]) -> None:
        self._x = torch.from_numpy(np.ascontiguousarray(x_NCHW))
        self._y = torch.from_numpy(np.ascontiguousarray(y_N))

    def __len__(self) -> int:
        return len(self._y)

    def __getitem__(self, index: int) -> Batch:
        return self._x[index], self._y[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices)
        return self._x[chosen], self._y[chosen]


def _already_a_batch(batch: Any) -> Any:
    return batch


def batches(
    x_NCHW: NDArray[np.float32], y_N: NDArray[np.int64], *, batch_size: int, shuffle_seed: int | None
) -> DataLoader[Batch]:
    """Loader of (x_BCHW float32, y_B int64); shuffled by `shuffle_seed`, in order and complete when it is None."""
    generator = None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed)
    return DataLoader(
        _Arrays(x_NCHW, y_N),
        batch_size=batch_size,
        shuffle=shuffle_seed is not None,
        generator=generator,
        # A last batch of a few samples would feed batch norm statistics of its own.
        drop_last=shuffle_seed is not None and len(y_N) >= batch_size,
        collate_fn=_already_a_batch,
    )
