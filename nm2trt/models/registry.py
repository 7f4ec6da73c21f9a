"""Builds a network from its name and the data's shape."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.models.mlp import Mlp
from nm2trt.models.resnet import CifarResNet

Factory = Callable[[tuple[int, ...], int], nn.Module]

_FACTORIES: dict[str, Factory] = {
    "mlp": lambda shape, classes: Mlp(shape, classes),
    "resnet8": lambda shape, classes: CifarResNet(shape, classes, blocks=1),
    "resnet20": lambda shape, classes: CifarResNet(shape, classes, blocks=3),
}


def model_names() -> list[str]:
    """Names that `build_model` takes."""
    return sorted(_FACTORIES)


def build_model(name: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build a network with fresh weights from torch's global random generator.

    Args:
        name: One of `model_names()`.
        input_shape: One sample, [C, H, W].
        classes: Number of logits.

    Raises:
        ConfigError: The name is unknown, or the network cannot take such samples.
    """
    if name not in _FACTORIES:
        raise ConfigError(f"unknown model {name!r}", where="model", mend=f"choose from {', '.join(model_names())}")
    return _FACTORIES[name](input_shape, classes)
