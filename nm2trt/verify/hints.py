"""A guess at whether TensorRT would choose a sparse kernel for a layer of a shape. A hint, never a finding.

The builder times sparse and dense kernels on the GPU at hand and keeps the faster, so only a build tells. What is known
in public, layer by layer, are the choices of TensorRT 10.16 on an A100 for one network (a UNet with a ResNet-34
encoder, 256 x 256, batch 32; FP16 and INT8). The rule below was read off those choices by hand:

- 32 of 32 FP16 convolutions with K of 128 and more and C of 64 and more (1x1: C of 128 and more) got a sparse kernel;
- 0 of 6 with K or C below 64, or 1x1 with C of 64, did;
- with K = 64 it went both ways, among layers of the very same shape (4 of 8), so the rule does not say;
- in INT8 it held, except that 0 of 4 convolutions with K of 512 got one (on 8 x 8 images); the rule does not say there.

The same layers that the rule was made from are the only ones that it was checked on. It sees K, C, the kernel's size
and the type. It is blind to image size, batch, stride, what is fused behind the layer, the GPU and the version of
TensorRT. Of matrix products there is no such record, so it says nothing about them.
"""

from __future__ import annotations

import math
from typing import Literal

from nm2trt.layers import LayerWeight

Hint = Literal["likely", "unlikely", "open", ""]

BLIND = (
    "hint = would TensorRT choose a sparse kernel for such a shape, from its choices for one UNet on an A100 "
    "(TensorRT 10.16); blind to image size, batch, fusion and GPU: only a build tells"
)

_SMALL = 64
_WIDE = 128
_WIDEST_INT8 = 512


def sparse_kernel_hint(layer: LayerWeight) -> Hint:
    """Guess from the shape of an eligible layer; "open" where the record goes both ways or has no such layer."""
    if layer.op != "conv" or layer.groups != 1:
        return "open"
    return conv_hint(layer.shape[0], layer.shape[1], math.prod(layer.shape[2:]), layer.graph_dtype)


def conv_hint(out_channels: int, in_channels: int, kernel_size: int, dtype: str = "") -> Hint:
    """Guess for an ungrouped convolution.

    Args:
        out_channels: K.
        in_channels: C.
        kernel_size: R * S, the weights per input channel.
        dtype: "int8" where the graph is quantized; anything else is taken for FP16.
    """
    if min(out_channels, in_channels) < _SMALL:
        return "unlikely"
    if kernel_size == 1 and in_channels < _WIDE:
        return "unlikely"
    if out_channels < _WIDE or (dtype == "int8" and out_channels >= _WIDEST_INT8):
        return "open"
    return "likely"
