"""Find the grouping that a pattern was imposed along, where it is not the one that the hardware uses."""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from nm2trt.pattern import NMPattern
from nm2trt.verify.counting import count_groups

_AXIS_NAMES = {
    "conv": ("output channels", "input channels", "kernel", "kernel", "kernel"),
    "conv-transpose": ("input channels", "output channels", "kernel", "kernel", "kernel"),
    "linear": ("output features", "input features"),
}


def other_grouping(weight: NDArray[Any], pattern: NMPattern, axis: int, op: str) -> str:
    """Name a grouping other than `axis` along which every group conforms; empty where there is none.

    Tried first is the flattened kernel order, [O, I * kH * kW] in groups of M neighbours: the first SR-STE code,
    Bi-Mask and Model Optimizer's SparseGPT prune convolutions like that.

    Returns:
        A phrase such as "along axis 0 (output channels)".
    """
    spatial = math.prod(weight.shape[2:])
    if op == "conv" and spatial > 1:
        flattened = weight.reshape(weight.shape[0], -1)
        if _conforms(flattened, pattern, 1):
            return "along the flattened kernel (I * kH * kW)"
    for other in range(weight.ndim):
        if other != axis and _conforms(weight, pattern, other):
            names = _AXIS_NAMES.get(op, ())
            return f"along axis {other}" + (f" ({names[other]})" if other < len(names) else "")
    return ""


def _conforms(weight: NDArray[Any], pattern: NMPattern, axis: int) -> bool:
    return weight.shape[axis] % pattern.m == 0 and count_groups(weight, pattern, axis).violations == 0
