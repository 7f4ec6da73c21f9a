"""Small residual networks for images of 8 to 64 pixels.

He et al. 2016, section 4.2: a 3x3 stem, three stages of basic blocks with 16, 32 and 64 channels. Shortcuts that
change shape are 1x1 convolutions.
"""

from __future__ import annotations

import torch
from torch import nn

from nm2trt.errors import ConfigError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels_in == channels_out
            else nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )
        )

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Map [B, C_in, H, W] to [B, C_out, H / stride, W / stride]."""
        y_BCHW = torch.relu(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = self.bn2(self.conv2(y_BCHW))
        return torch.relu(y_BCHW + self.shortcut(x_BCHW))


class CifarResNet(nn.Module):
    """ResNet-(6 * blocks + 2).

    Args:
        input_shape: [C, H, W].
        classes: Number of logits.
        blocks: Basic blocks per stage.
        widths: Channels of the stages.

    Raises:
        ConfigError: The samples are not images.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        blocks: int,
        widths: tuple[int, ...] = (16, 32, 64),
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise ConfigError(f"a ResNet takes images [C, H, W], not {list(input_shape)}", where="model")
        self.conv1 = nn.Conv2d(input_shape[0], widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages = []
        channels_in = widths[0]
        for index, channels_out in enumerate(widths):
            stage = []
            for block in range(blocks):
                stage.append(BasicBlock(channels_in, channels_out, stride=2 if index and not block else 1))
                channels_in = channels_out
            stages.append(nn.Sequential(*stage))
        self.layers = nn.Sequential(*stages)
        self.fc = nn.Linear(channels_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to logits [B, classes]."""
        x_BCHW = torch.relu(self.bn1(self.conv1(x_BCHW)))
        x_BCHW = self.layers(x_BCHW)
        logits: torch.Tensor = self.fc(x_BCHW.mean(dim=(2, 3)))
        return logits
