"""The bound itself, without any fitted constant: peak compute and memory bandwidth (Williams et al., CACM 2009)."""

from __future__ import annotations

from dataclasses import dataclass

from nm2trt.estimate.geometry import LayerGeometry
from nm2trt.estimate.gpus import GpuSpec, Precision
from nm2trt.estimate.kernel import SPARSE_WEIGHT_SCALE


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Where a layer lies under its GPU's roof."""

    intensity: float
    """FLOP per byte."""
    ridge: float
    """Intensity from which on compute bounds."""
    compute_us: float
    memory_us: float

    @property
    def bound_us(self) -> float:
        """No kernel is faster, unless tensors stay in L2 from layer to layer."""
        return max(self.compute_us, self.memory_us)

    @property
    def memory_bound(self) -> bool:
        """Whether memory is the lower roof."""
        return self.memory_us >= self.compute_us


def roofline_of(layer: LayerGeometry, gpu: GpuSpec, precision: Precision, *, sparse: bool = False) -> Roofline:
    """Bound a layer by the vendor's figures.

    Args:
        layer: What it computes and moves.
        gpu: Where.
        precision: Of its products and floating-point tensors.
        sparse: Use the sparse peak and compressed weights.

    Raises:
        ConfigError: The GPU has no Tensor Cores for this precision.
    """
    dense_peak = gpu.peak_flop_per_us(precision)
    peak = gpu.sparse.get(precision, gpu.dense[precision]) * 1e6 if sparse else dense_peak
    size_bytes = layer.size_bytes(precision, weight_scale=SPARSE_WEIGHT_SCALE[precision] if sparse else 1.0)
    return Roofline(
        intensity=layer.flops / max(1.0, size_bytes),
        ridge=peak / gpu.bytes_per_us,
        compute_us=layer.flops / peak,
        memory_us=size_bytes / gpu.bytes_per_us,
    )
