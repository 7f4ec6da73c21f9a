"""Whether TensorRT may consider a sparse kernel for a layer. Says nothing about which kernel it then chooses.

Rules: NVIDIA's TensorRT documentation on structured sparsity (every aligned group of 4 input channels holds at most
2 non-zeros, for each output channel and kernel position; C a multiple of 4; FP16 or INT8), and the maintainers'
answer that grouped convolutions are not considered (NVIDIA/TensorRT issue 4054).
"""

from __future__ import annotations

from nm2trt.layers import LayerWeight
from nm2trt.pattern import TENSORRT_PATTERN
from nm2trt.reasons import Reason

_GOOD_DTYPES = ("float16", "int8")


def structural_reason(layer: LayerWeight) -> Reason | None:
    """Why no weights of this operator and shape could get a sparse kernel; None where nothing stands against it."""
    if layer.op == "conv-transpose":
        return Reason("conv-transpose")
    if layer.groups > 1:
        return Reason("grouped", str(layer.groups))
    if layer.reduction_axis is None:
        return layer.reason or Reason("nothing-to-prune")
    if layer.op == "matmul" and layer.reduction_axis == len(layer.shape) - 1:
        return Reason("left-operand")
    if layer.op == "matmul" and any(size != 1 for size in layer.shape[:-2]):
        return Reason("batched-matmul")
    size = layer.shape[layer.reduction_axis]
    return Reason("channels", str(size), str(TENSORRT_PATTERN.m)) if size % TENSORRT_PATTERN.m else None


def dtype_reason(layer: LayerWeight) -> Reason | None:
    """Why the type in a strongly typed graph stands against a sparse kernel; None for checkpoints."""
    dtype = layer.graph_dtype
    if not dtype or dtype in _GOOD_DTYPES:
        return None
    if dtype == "mask":
        return Reason("mask-only")
    if dtype in ("float32", "float64"):
        return Reason("float32", dtype)
    return Reason("bfloat16") if dtype == "bfloat16" else Reason("engine-dtype", dtype)


def reason_against(layer: LayerWeight, *, illegal_groups: int, groups: int) -> Reason | None:
    """Return the first reason why TensorRT considers no sparse kernel, or None for an eligible layer.

    Args:
        layer: The layer.
        illegal_groups: Aligned groups of 4 with more than 2 non-zeros, counted in the weights.
        groups: All aligned groups of 4.
    """
    if reason := structural_reason(layer):
        return reason
    if layer.zero_point:
        return Reason("zero-point")
    if illegal_groups:
        return Reason("not-legal", str(illegal_groups), str(groups))
    return dtype_reason(layer)
