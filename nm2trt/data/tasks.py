"""What a network is trained for: the loss, and the score that is reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F


class Task(Protocol):
    """Both take the network's output and the batch's targets as the loader gives them."""

    @property
    def score_name(self) -> str:
        """In words, such as "accuracy"; larger is better, 1 is perfect."""

    def losses(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the loss of each sample, [B] float32; training minimises the mean."""

    def score(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return [B, 2] float32: points won and points to be had; the score is the quotient of their sums."""


@dataclass(frozen=True, slots=True)
class Classification:
    """Cross-entropy and top-1 accuracy; output is logits [B, classes], y is labels [B]."""

    score_name: str = "accuracy"

    def losses(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `Task`."""
        return F.cross_entropy(output.float(), y, reduction="none")

    def score(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `Task`."""
        hits_B = (output.argmax(dim=1) == y).float()
        return torch.stack([hits_B, torch.ones_like(hits_B)], dim=1)
