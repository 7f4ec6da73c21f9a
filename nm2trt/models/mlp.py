"""A plain multi-layer perceptron."""

from __future__ import annotations

import math

import torch
from torch import nn


class Mlp(nn.Module):
    """Flatten, two hidden layers with ReLU, logits.

    Args:
        input_shape: One sample, any rank.
        classes: Number of logits.
        width: Units of each hidden layer.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int, width: int = 128) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(math.prod(input_shape), width)
        self.hidden2 = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to logits [B, classes]."""
        x_BK = x_BCHW.flatten(1)
        x_BK = torch.relu(self.hidden1(x_BK))
        x_BK = torch.relu(self.hidden2(x_BK))
        logits: torch.Tensor = self.head(x_BK)
        return logits
