"""How a tensor lies in memory."""

from __future__ import annotations

import torch


def fills_memory(tensor: torch.Tensor) -> bool:
    """Return whether the elements fill their memory without gaps, in any order of the axes."""
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True
