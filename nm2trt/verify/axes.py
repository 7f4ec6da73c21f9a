"""Find the grouping that a pattern was imposed along, where it is not the one that the hardware uses."""

from __future__ import annotations

import math

from nm2trt.pattern import NMPattern
from nm2trt.verify.values import Values

_AXIS_NAMES = {
    "conv": ("output channels", "input channels", "kernel", "kernel", "kernel"),
    "conv-transpose": ("input channels", "output channels", "kernel", "kernel", "kernel"),
    "linear": ("output features", "input features"),
}


def other_grouping(values: Values, pattern: NMPattern, axis: int, op: str) -> str:
    """Name a grouping other than `axis` along which every group conforms; empty where there is none.

    Tried first is the flattened kernel order, [O, I * kH * kW] in groups of M neighbors: the first SR-STE code,
    Bi-Mask and Model Optimizer's SparseGPT prune convolutions like that.

    Returns:
        A phrase such as "along axis 0 (output channels)".
    """
    shape = values.shape
    if op == "conv" and math.prod(shape[2:]) > 1:
        flattened = (shape[0], math.prod(shape[1:]))
        if _conforms(values, flattened, pattern, 1):
            return "along the flattened kernel (I * kH * kW)"
    for other in range(len(shape)):
        if other != axis and _conforms(values, shape, pattern, other):
            names = _AXIS_NAMES.get(op, ())
            return f"along axis {other}" + (f" ({names[other]})" if other < len(names) else "")
    return ""


def _conforms(values: Values, shape: tuple[int, ...], pattern: NMPattern, axis: int) -> bool:
    return shape[axis] % pattern.m == 0 and values.count(pattern, axis, shape).violations == 0
