"""What each layer of a graph computes and moves, at one batch size: FLOPs, bytes and GEMM dimensions.

A layer is what a TensorRT kernel would cover, approximated: a convolution or matrix product with the batch norm,
bias, residual sum, activation and quantization behind it; a whole attention; a run of pointwise operators and
reductions. TensorRT decides for itself what it fuses; the engine's own layer list (`nm2trt inspect`) is the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["conv", "conv-transpose", "gemm", "batched-matmul", "attention", "memory"]

PRECISION_BYTES: Mapping[str, float] = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
"""Size of an element in device memory; TF32 is stored as FP32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Elements moved to or from memory, by what decides on their size."""

    floats: int = 0
    """Stored in the precision that the engine runs in."""
    int8: int = 0
    """Behind a QuantizeLinear."""
    other_bytes: int = 0
    """Integers and booleans, in bytes as they are stored."""

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            floats=self.floats + other.floats,
            int8=self.int8 + other.int8,
            other_bytes=self.other_bytes + other.other_bytes,
        )

    def size_bytes(self, float_bytes: float) -> float:
        """Bytes where a floating-point element takes `float_bytes`."""
        return self.floats * float_bytes + self.int8 + self.other_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGeometry:
    """One layer at one batch size. Counts are exact for the graph; the fusion is an approximation."""

    name: str
    """Name of the node that gives the layer its name: the product, or the first of its operators."""
    kind: Kind
    op_types: tuple[str, ...]
    """Operators in the layer, in graph order."""
    nodes: tuple[str, ...]
    """Their names (or their first output's, for nodes without one)."""
    weight: str = ""
    """The tensor with the weights, as `nm2trt verify` names it; empty where the layer has none."""
    torch_name: str = ""
    """Module in torch, where the file says so."""
    m: int = 0
    """GEMM rows: batch times output pixels, or tokens. 0 for memory-bound layers, as n and k."""
    n: int = 0
    """GEMM columns per group: output channels or features."""
    k: int = 0
    """GEMM reduction per group: input channels times kernel positions."""
    groups: int = 1
    """Independent products: convolution groups, or the batch of a batched product."""
    channels: int = 0
    """Input channels per group: the axis along which the 2:4 pattern lies."""
    kernel: tuple[int, ...] = ()
    flops: int = 0
    """Two per multiply-add; those of products only."""
    reads: Traffic = Traffic()
    """Activations, residuals among them; each tensor once."""
    residual: Traffic = Traffic()
    """The part of `reads` that the epilogue reads."""
    writes: Traffic = Traffic()
    weight_elements: int = 0
    quantized: bool = False
    """Weights and activations come through DequantizeLinear: an INT8 product."""
    int8_out: bool = False
    """All that it writes is quantized."""

    @property
    def taps(self) -> int:
        """Kernel positions."""
        return self.k // self.channels if self.channels else 1

    @property
    def is_product(self) -> bool:
        """Whether Tensor Cores have work here."""
        return self.kind != "memory"

    def size_bytes(self, precision: str, *, weight_scale: float = 1.0) -> float:
        """Bytes moved between memory and chip when every tensor crosses once.

        Args:
            precision: A key of PRECISION_BYTES. Quantized tensors take one byte in any.
            weight_scale: Size of the stored weights against dense ones.
        """
        size = PRECISION_BYTES[precision]
        weights = self.weight_elements * (1 if self.quantized else size) * weight_scale
        return self.reads.size_bytes(size) + self.writes.size_bytes(size) + weights

    def intensity(self, precision: str) -> float:
        """FLOP per byte, as in Williams, Waterman and Patterson, "Roofline" (CACM 2009)."""
        return self.flops / max(1.0, self.size_bytes(precision))
