"""TensorFloat-32 for matrix products of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def matmul_precision(*, tf32: bool) -> Iterator[None]:
    """Let float32 matrix products run in TF32 for a while, on GPUs that have it; convolutions do by torch's default."""
    if not tf32:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
