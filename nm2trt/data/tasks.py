"""What a network is trained for: the loss, and the score that is reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
import torch.nn.functional as F

from nm2trt.errors import InputError

Better = Literal["higher", "lower"]


class Task(Protocol):
    """Both functions take the network's output and the batch's targets as the loader gives them."""

    @property
    def score_name(self) -> str:
        """In words, such as "accuracy" or "phoneme error rate"; records and pages show it in per cent."""

    @property
    def score_better(self) -> Better:
        """Whether a higher or a lower score is better; `better_of` takes "higher" where a task does not say."""

    def losses(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the loss of each sample, [B] float32; training minimizes the mean."""

    def score(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return [B, 2] float32, points (or errors) and how many there could be: the score is the sums' quotient."""


def better_of(task: Task) -> Better:
    """Which scores of a task are better; a task of the user's own need not say so when they are the higher ones."""
    better: Better = getattr(task, "score_better", "higher")
    if better not in get_args(Better):
        raise InputError(f"score_better is {better!r}", where=type(task).__name__, hint='use "higher" or "lower"')
    return better


@dataclass(frozen=True, slots=True)
class Classification:
    """Cross-entropy and top-1 accuracy; output is logits [B, classes], y is labels [B]."""

    score_name: str = "accuracy"
    score_better: Better = "higher"

    def losses(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `Task`."""
        return F.cross_entropy(output.float(), y, reduction="none")

    def score(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `Task`."""
        hits_B = (output.argmax(dim=1) == y).float()
        return torch.stack([hits_B, torch.ones_like(hits_B)], dim=1)
