"""A small transformer encoder over short sequences, for CTC."""

from __future__ import annotations

import torch
from torch import nn

from nm2trt.errors import ConfigError

_SLOTS = 2
_HEADS = 4


class EncoderBlock(nn.Module):
    """Self-attention and a two-layer MLP, normalized before each (Xiong et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, _HEADS, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_BLK: torch.Tensor) -> torch.Tensor:
        """Map [B, L, K] to [B, L, K]."""
        y_BLK = self.norm1(x_BLK)
        x_BLK = x_BLK + self.attention(y_BLK, y_BLK, y_BLK, need_weights=False)[0]
        z_BLK: torch.Tensor = x_BLK + self.down(nn.functional.gelu(self.up(self.norm2(x_BLK))))
        return z_BLK


class Encoder(nn.Module):
    """Encoder whose every position answers in two slots, so that an output may be longer than its input.

    Args:
        input_shape: [L, features]; padding is a feature like others, so there is no mask.
        classes: Of each slot, CTC's blank among them.
        width: Features between the blocks.
        depth: Blocks.

    Raises:
        ConfigError: The samples are no sequences.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int, *, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        if len(input_shape) != 2:
            raise ConfigError(f"an encoder takes sequences [L, features], not {list(input_shape)}", where="model")
        length, features = input_shape
        self._classes = classes
        self.project = nn.Linear(features, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, _SLOTS * classes)

    def forward(self, x_BLF: torch.Tensor) -> torch.Tensor:
        """Map [B, L, features] to logits [B, 2 L, classes]."""
        x_BLK = self.blocks(self.project(x_BLF) + self.position)
        logits: torch.Tensor = self.head(self.norm(x_BLK))
        return logits.reshape(-1, _SLOTS * x_BLF.shape[1], self._classes)
