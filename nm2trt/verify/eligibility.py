"""Whether TensorRT may consider a sparse kernel for a layer. Says nothing about which kernel it then chooses.

Rules: NVIDIA's TensorRT documentation on structured sparsity (every aligned group of 4 input channels holds at most
2 non-zeros, for each output channel and kernel position; C a multiple of 4; FP16 or INT8), and the maintainers'
answer that grouped convolutions are not considered (NVIDIA/TensorRT issue 4054).
"""

from __future__ import annotations

from nm2trt.layers import LayerWeight
from nm2trt.pattern import TENSORRT_PATTERN
from nm2trt.verify.verdicts import ELIGIBLE

_GOOD_DTYPES = ("float16", "int8")


def structural_reason(layer: LayerWeight) -> str:
    """Why no weights of this operator and shape could get a sparse kernel; empty where nothing stands against it."""
    if layer.op == "conv-transpose":
        return "ConvTranspose: TensorRT has no sparse kernels for it"
    if layer.groups > 1:
        return f"{layer.groups} groups: TensorRT does not consider sparse kernels for grouped convolutions"
    if layer.reduction_axis is None:
        return layer.why_not or "nothing to prune along"
    if layer.op == "matmul" and layer.reduction_axis == len(layer.shape) - 1:
        return "weight on the left of MatMul: unverified"
    if layer.op == "matmul" and any(size != 1 for size in layer.shape[:-2]):
        return "batched MatMul: unverified"
    size = layer.shape[layer.reduction_axis]
    if size % TENSORRT_PATTERN.m:
        return f"{size} input channel{'' if size == 1 else 's'}: no multiple of {TENSORRT_PATTERN.m}"
    return ""


def dtype_reason(layer: LayerWeight) -> str:
    """Why the type in a strongly typed graph stands against a sparse kernel; empty for checkpoints."""
    dtype = layer.graph_dtype
    if not dtype or dtype in _GOOD_DTYPES:
        return ""
    if dtype == "mask":
        return "mask: the weights are in another file"
    if dtype in ("float32", "float64"):
        return f"{dtype}: TensorRT's sparse kernels need FP16 or INT8; export --precision fp16"
    if dtype == "bfloat16":
        return "bfloat16: unverified; NVIDIA documents sparse kernels for FP16 and INT8"
    return f"{dtype}: TensorRT's sparse kernels need FP16 or INT8"


def eligibility(layer: LayerWeight, *, illegal_groups: int, groups: int) -> str:
    """Return `eligible` or the first reason against it.

    Args:
        layer: The layer.
        illegal_groups: Aligned groups of 4 with more than 2 non-zeros, counted in the weights.
        groups: All aligned groups of 4.
    """
    if reason := structural_reason(layer):
        return reason
    if layer.zero_point:
        return "zero point is not 0: stored zeros are not zeros"
    if illegal_groups:
        return f"not 2:4-legal: {illegal_groups} of {groups} groups hold more than 2 of 4"
    return dtype_reason(layer) or ELIGIBLE
