"""How long one kernel takes: tiles and waves over the SMs, on-chip traffic, memory, and a floor. See docs/estimate.md.

A product is cut into tiles of bm x bn outputs. A tile needs its multiply-adds and its operands from L2; SMs work
through the tiles in whole waves; the reduction may be split. TensorRT times many kernels and keeps the fastest, so the
fastest tiling is taken. Memory traffic overlaps with that; launch and drain do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from nm2trt.estimate.constants import KernelConstants, Spread, constants_of_file, fitted_constants
from nm2trt.estimate.geometry import LayerGeometry
from nm2trt.estimate.gpus import GpuSpec, Precision

__all__ = [
    "ELEMENT_BYTES",
    "SPARSE_WEIGHT_SCALE",
    "Bound",
    "KernelConstants",
    "KernelTime",
    "Spread",
    "constants_of_file",
    "fitted_constants",
    "kernel_time",
    "sparse_factor",
    "sustained_share",
]

Bound = Literal["compute", "on-chip", "memory", "launch"]

ELEMENT_BYTES: dict[Precision, int] = {"tf32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
SPARSE_WEIGHT_SCALE: dict[Precision, float] = {
    "tf32": 0.53125,
    "fp16": 0.5625,
    "bf16": 0.5625,
    "int8": 0.625,
    "fp8": 0.625,
}
"""Half of the values and two bits of place for each that is kept."""
_ALIGNMENT: dict[Precision, int] = {"tf32": 4, "fp16": 8, "bf16": 8, "int8": 32, "fp8": 16}
"""Channels are padded to this."""
_FEW_CHANNELS = 4
_SIDES = (32, 64, 128, 256)
_LARGEST_TILE, _SMALLEST_TILE = 256 * 128, 64 * 32
_SPARSE_COLUMNS = 64
"""Sparse kernels with fewer output channels in a tile were never seen."""
_SPLITS = (1, 2, 4, 8)
_SPLIT_REDUCTION = 512
"""A part of a split reduction has at least this many."""
_TILE_OVERLAP = 8.0
"""Exponent of a tile's sum of multiply-adds and traffic: 1 is one after the other, infinity perfect overlap. For
compute and device memory it is 2."""
_ATTENTION_EFFICIENCY = 0.4
"""Of what a GEMM reaches; not fitted. Dao, "FlashAttention-2" (2023), gives 30 to 50 % of the peak for fused attention
before it, on an A100."""
_ATTENTION_ROWS = 64
"""Queries in a tile of fused attention."""
_REFERENCE_RATE = 4096.0
"""FLOP a clock and SM times bytes an element of an A100; its FP16 and INT8 agree."""
_OPERAND_OVERLAP = 4.0
"""Exponent of the sum of a sparse tile's multiply-adds and its operands' way out of shared memory."""
_CUDA_CORE_SHARE = 0.05
"""FP32 units reach this share of the FP16 Tensor Core peak in a depthwise convolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTime:
    """Time of one kernel as a per-layer profile would show it, and its parts, in microseconds."""

    total_us: float
    compute_us: float
    """Tiles over the SMs: multiply-adds and on-chip traffic."""
    memory_us: float
    floor_us: float
    bound: Bound
    tile: tuple[int, int] = (0, 0)
    split: int = 1
    waves: float = 0.0
    """Tiles per SM."""


def kernel_time(
    layer: LayerGeometry,
    gpu: GpuSpec,
    precision: Precision,
    *,
    sparse: bool = False,
    constants: KernelConstants | None = None,
    float_bytes: float | None = None,
) -> KernelTime:
    """Estimate one layer's kernel.

    Args:
        layer: What it computes and moves.
        gpu: Where.
        precision: Of its products and of its floating-point tensors.
        sparse: A sparse kernel; whether TensorRT has one for the layer is not asked here.
        constants: Others than the fitted ones.
        float_bytes: Size of a floating-point element in memory, where it is not that of `precision`.

    Raises:
        ConfigError: The GPU has no Tensor Cores for this precision.
    """
    fitted = constants or fitted_constants()
    scale = SPARSE_WEIGHT_SCALE[precision] if sparse else 1.0
    moved = _moved_bytes(layer, precision, scale, float_bytes)
    memory_us = _missed_bytes(layer, gpu, precision, scale, moved, fitted) / (
        gpu.bytes_per_us * fitted.memory_efficiency
    )
    floor_us = _floor_us(gpu, sparse, fitted)
    if not layer.is_product:
        return KernelTime(
            total_us=max(memory_us + floor_us, moved / gpu.bytes_per_us),
            compute_us=0.0,
            memory_us=memory_us,
            floor_us=floor_us,
            bound="memory" if memory_us > floor_us else "launch",
        )
    compute_us, best = _compute(layer, gpu, precision, sparse, fitted)
    both = math.hypot(compute_us, memory_us)
    return KernelTime(
        # Cached or not, the estimate stays on this side of the roofline.
        total_us=max(both + floor_us, moved / gpu.bytes_per_us),
        compute_us=compute_us,
        memory_us=memory_us,
        floor_us=floor_us,
        bound=_bound(compute_us, memory_us, floor_us, best),
        tile=(best.bm, best.bn),
        split=best.split,
        waves=best.waves,
    )


@dataclass(frozen=True, slots=True)
class _Tiling:
    bm: int
    bn: int
    split: int
    waves: float
    mma_us: float = 0.0
    l2_us: float = 0.0


def _bound(compute_us: float, memory_us: float, floor_us: float, best: _Tiling) -> Bound:
    if floor_us >= max(compute_us, memory_us):
        return "launch"
    if memory_us >= compute_us:
        return "memory"
    return "compute" if best.mma_us >= best.l2_us else "on-chip"


def _up(value: int, step: int) -> int:
    return -(-value // step)


def _moved_bytes(layer: LayerGeometry, precision: Precision, weight_scale: float, float_bytes: float | None) -> float:
    weights = layer.weight_elements * ELEMENT_BYTES[precision] * weight_scale
    size = float_bytes or ELEMENT_BYTES[precision]
    return layer.reads.size_bytes(size) + layer.writes.size_bytes(size) + weights


def _floor_us(gpu: GpuSpec, sparse: bool, fitted: KernelConstants) -> float:
    own = fitted.kernel_us - fitted.profile_us + (fitted.sparse_kernel_us if sparse else 0.0)
    # Ramp-up and drain are latencies on the chip, in clocks; what a profiler adds is the driver's.
    slower = fitted.floor_clock_mhz / gpu.clock_mhz if fitted.floor_clock_mhz else 1.0
    return own * slower + fitted.profile_us


def sustained_share(gpu: GpuSpec, precision: Precision, fitted: KernelConstants, *, sparse: bool = False) -> float:
    """Share of the clock behind the peaks that a board's power limit leaves to long products; 1 where it is enough."""
    measured = fitted.sustained.get(gpu.key, {}).get(precision)
    if measured is not None:
        return measured
    if precision not in fitted.watts_per_tflops:
        return 1.0
    peak_tflops = gpu.peak_flop_per_us(precision) / 1e6
    needed_w = fitted.watts_per_tflops[precision] * fitted.watts_scale.get(str(gpu.sm), 1.0) * peak_tflops
    if sparse and fitted.sparse_power:
        # Half of the multiply-adds, in half of the time or more, with operands that are as many as before.
        needed_w *= fitted.sparse_power * sparse_factor(gpu, precision, fitted)
    return float(min(1.0, gpu.power_w / needed_w) ** fitted.power_exponent)


def sparse_factor(gpu: GpuSpec, precision: Precision, fitted: KernelConstants) -> float:
    """How much faster a sparse tile's multiply-adds are: at most 2, and no faster than its operands arrive.

    The faster an SM multiplies, the sooner its dense operand, which sparsity does not shrink, becomes the limit.
    """
    if precision not in fitted.operand_limit:
        return fitted.sparse_speedup[precision]
    per_clock = gpu.peak_flop_per_us(precision) / gpu.sms / gpu.clock_mhz * ELEMENT_BYTES[precision]
    limit = fitted.operand_limit[precision] * fitted.operand_scale.get(str(gpu.sm), 1.0) * _REFERENCE_RATE / per_clock
    return float((0.5**_OPERAND_OVERLAP + limit**-_OPERAND_OVERLAP) ** (-1 / _OPERAND_OVERLAP))


def _missed_bytes(
    layer: LayerGeometry, gpu: GpuSpec, precision: Precision, scale: float, moved: float, fitted: KernelConstants
) -> float:
    weights = layer.weight_elements * ELEMENT_BYTES[precision] * scale if fitted.weights_stream else 0.0
    # What fits into L2 is in part still there from the layer before; no weights are, after a whole network.
    tensors = moved - weights
    return weights + tensors * min(1.0, tensors / (gpu.l2_mib * 2**20 * fitted.l2_resident))


def _compute(
    layer: LayerGeometry, gpu: GpuSpec, precision: Precision, sparse: bool, fitted: KernelConstants
) -> tuple[float, _Tiling]:
    sustained = sustained_share(gpu, precision, fitted, sparse=sparse)
    if layer.kind == "conv" and layer.groups > 1 and layer.channels == 1:
        rate = gpu.peak_flop_per_us("fp16" if "fp16" in gpu.dense else precision) * _CUDA_CORE_SHARE
        return layer.flops / rate, _Tiling(0, 0, 1, 0.0, mma_us=1.0)
    if layer.kind == "attention" and fitted.attention_share:
        return _attention(layer, gpu, precision, sustained, fitted)
    size = ELEMENT_BYTES[precision]
    scale = SPARSE_WEIGHT_SCALE[precision] if sparse else 1.0
    rate = gpu.peak_flop_per_us(precision) / gpu.sms * fitted.efficiency[precision]
    rate *= sparse_factor(gpu, precision, fitted) if sparse else 1.0
    l2_rate = fitted.l2_bytes_per_clock * fitted.l2_scale.get(str(gpu.sm), 1.0) * gpu.clock_mhz
    pack = max(1, min(layer.groups, _SIDES[0] // layer.n)) if layer.kind in ("conv", "conv-transpose") else 1
    n, k = layer.n * pack, _padded_k(layer, precision) * pack
    groups = _up(layer.groups, pack)
    writes_per_tile = 2.0 if layer.residual.floats or layer.residual.int8 else 1.0
    least = max(fitted.least_columns.get(precision, 0), _SPARSE_COLUMNS if sparse else 0)
    splits = fitted.split_convolutions or layer.kind not in ("conv", "conv-transpose")
    best_us, best = math.inf, _Tiling(0, 0, 1, 0.0)
    smallest = max(_SMALLEST_TILE, fitted.least_sparse_tile.get(precision, 0) if sparse else 0)
    for bm, bn, split in _tilings(n, k, least, smallest, splits, fitted.tile_rows):
        tiles = _up(layer.m, bm) * _up(n, bn) * split * groups
        mma_us = 2 * bm * bn * (k / split) / rate
        l2_us = (k / split) * size * (bm + bn * scale) / l2_rate
        write_us = fitted.epilogue * bm * min(bn, n) * size * writes_per_tile / l2_rate
        tile_us = (mma_us**_TILE_OVERLAP + l2_us**_TILE_OVERLAP) ** (1 / _TILE_OVERLAP) + write_us
        total_us = _waves(tiles / gpu.sms, fitted.soft_wave) * tile_us
        if split > 1:
            total_us += fitted.split_us + (fitted.sparse_split_us if sparse else 0.0)
        if total_us < best_us:
            best_us, best = total_us, _Tiling(bm, bn, split, tiles / gpu.sms, mma_us, l2_us)
    if layer.kind == "attention":
        # The second product of a fused attention has the dimensions of the first.
        best_us *= layer.flops / max(1, 2 * layer.m * layer.n * layer.k * layer.groups) / _ATTENTION_EFFICIENCY
    return best_us / sustained, best


def _waves(tiles_per_sm: float, soft: float) -> float:
    """Waves that the tiles take: SMs that are done early share caches and power with the last wave's tiles."""
    whole = math.ceil(tiles_per_sm)
    return whole - soft * (whole - tiles_per_sm) if whole > 1 else 1.0


def _attention(
    layer: LayerGeometry, gpu: GpuSpec, precision: Precision, sustained: float, fitted: KernelConstants
) -> tuple[float, _Tiling]:
    # The share of the peak is that of whole fused kernels: tile losses are in it, empty SMs are not.
    tiles = _up(layer.m, _ATTENTION_ROWS) * layer.groups
    waves = _waves(tiles / gpu.sms, fitted.soft_wave)
    rate = gpu.peak_flop_per_us(precision) * (fitted.attention_share or 1.0) * sustained
    total_us = layer.flops / rate * waves * gpu.sms / tiles
    return total_us, _Tiling(_ATTENTION_ROWS, layer.n, 1, tiles / gpu.sms, mma_us=total_us)


def _padded_k(layer: LayerGeometry, precision: Precision) -> int:
    # The first convolution of an image network has kernels of its own, which pad three channels to fewer.
    step = min(_ALIGNMENT[precision], 8) if layer.channels <= _FEW_CHANNELS else _ALIGNMENT[precision]
    return _up(layer.channels, step) * step * layer.taps if layer.groups == 1 else layer.k


def _tilings(
    n: int, k: int, least: int, smallest: int, may_split: bool, rows: Sequence[int]
) -> Iterator[tuple[int, int, int]]:
    splits = [split for split in _SPLITS if split == 1 or (may_split and k >= _SPLIT_REDUCTION * split)]
    for bm in rows:
        for bn in _SIDES:
            if not smallest <= bm * bn <= _LARGEST_TILE or bn < least:
                continue
            # Wider than the product is never best. No rows are ruled out: time must not fall as a batch grows.
            if bn > _SPARSE_COLUMNS and bn >= 2 * n:
                continue
            for split in splits:
                yield bm, bn, split
