"""How long one kernel takes: tiles and waves over the SMs, on-chip traffic, memory, and a floor. See docs/estimate.md.

A product is cut into tiles of bm x bn outputs. A tile needs its multiply-adds and its operands from L2; SMs work
through the tiles in whole waves; the reduction may be split. TensorRT times many kernels and keeps the fastest, so the
fastest tiling is taken. Memory traffic overlaps with that; launch and drain do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nm2trt.errors import InputError
from nm2trt.estimate.geometry import LayerGeometry
from nm2trt.estimate.gpus import GpuSpec, Precision

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
_CUDA_CORE_SHARE = 0.05
"""FP32 units reach this share of the FP16 Tensor Core peak in a depthwise convolution."""


class Spread(BaseModel):
    """Measured over predicted in cross-validation: a tenth of the layers lie below `low`, a tenth above `high`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float


class KernelConstants(BaseModel):
    """What was fitted, with where it comes from. Written by benchmarks/estimate.py."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    efficiency: dict[Precision, float]
    """Share of the Tensor Core peak that a tile reaches."""
    l2_bytes_per_clock: float
    """Operands that an SM takes from L2 per clock."""
    memory_efficiency: float
    """Share of the device memory's bandwidth."""
    epilogue: float
    """Cost of writing a tile, in units of its L2 traffic."""
    kernel_us: float
    """Launch, ramp-up and drain of one kernel, as a per-layer profile shows it."""
    profile_us: float
    """The part of kernel_us that only profiling layer by layer costs."""
    split_us: float
    sparse_speedup: dict[Precision, float]
    """Of a tile's multiply-adds; 2 is the hardware's limit."""
    sparse_split_us: float
    """More for a split reduction in a sparse kernel."""
    sustained: dict[str, dict[Precision, float]]
    """Of the clock behind the peaks, on boards that their power limit slows down."""
    clock_gain: dict[str, dict[Precision, float]]
    """How much faster layers ran in the sparse engine whose kernels were the same: clocks, power; not sparsity."""
    spread: dict[str, Spread]
    """Of layers ("dense", "sparse", "gain": dense over sparse kernel) and of whole engines ("total")."""
    covered_flops: tuple[float, float] | None = None
    """Smallest and largest layer among those fitted on."""
    sparse_kernel_us: float = 0.0
    """More for launch, ramp-up and drain of a sparse kernel."""
    kernels: Literal["tensorrt", "torch"] = "tensorrt"
    """Whose kernels were measured."""
    provenance: dict[str, str]


@cache
def fitted_constants() -> KernelConstants:
    """The constants in the package."""
    text = resources.files("nm2trt.estimate").joinpath("constants.json").read_text(encoding="utf-8")
    return KernelConstants.model_validate_json(text)


def constants_of_file(fields: Mapping[str, object], path: Path) -> KernelConstants:
    """Read the constants of a GPU benchmark.

    Raises:
        InputError: They are incomplete or malformed.
    """
    try:
        return KernelConstants.model_validate(fields)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise InputError(
            f"constants: {said}", where=path, mend="write the file again with nm2trt benchmark-gpu"
        ) from None


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
    """Tiles per SM; the last wave is counted whole."""


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
    # What fits into L2 is in part still there from the layer before.
    missed = moved * min(1.0, moved / (gpu.l2_mib * 2**20))
    memory_us = missed / (gpu.bytes_per_us * fitted.memory_efficiency)
    floor_us = fitted.kernel_us + (fitted.sparse_kernel_us if sparse else 0.0)
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


def _compute(
    layer: LayerGeometry, gpu: GpuSpec, precision: Precision, sparse: bool, fitted: KernelConstants
) -> tuple[float, _Tiling]:
    sustained = fitted.sustained.get(gpu.key, {}).get(precision, 1.0)
    if layer.kind == "conv" and layer.groups > 1 and layer.channels == 1:
        rate = gpu.peak_flop_per_us("fp16" if "fp16" in gpu.dense else precision) * _CUDA_CORE_SHARE
        return layer.flops / rate, _Tiling(0, 0, 1, 0.0, mma_us=1.0)
    size = ELEMENT_BYTES[precision]
    scale = SPARSE_WEIGHT_SCALE[precision] if sparse else 1.0
    rate = gpu.peak_flop_per_us(precision) / gpu.sms * fitted.efficiency[precision]
    rate *= fitted.sparse_speedup[precision] if sparse else 1.0
    l2_rate = fitted.l2_bytes_per_clock * gpu.clock_mhz
    pack = max(1, min(layer.groups, _SIDES[0] // layer.n)) if layer.kind in ("conv", "conv-transpose") else 1
    n, k = layer.n * pack, _padded_k(layer, precision) * pack
    groups = _up(layer.groups, pack)
    writes_per_tile = 2.0 if layer.residual.floats or layer.residual.int8 else 1.0
    best_us, best = math.inf, _Tiling(0, 0, 1, 0.0)
    for bm, bn, split in _tilings(n, k, sparse):
        tiles = _up(layer.m, bm) * _up(n, bn) * split * groups
        mma_us = 2 * bm * bn * (k / split) / rate
        l2_us = (k / split) * size * (bm + bn * scale) / l2_rate
        write_us = fitted.epilogue * bm * min(bn, n) * size * writes_per_tile / l2_rate
        tile_us = (mma_us**_TILE_OVERLAP + l2_us**_TILE_OVERLAP) ** (1 / _TILE_OVERLAP) + write_us
        total_us = math.ceil(tiles / gpu.sms) * tile_us
        if split > 1:
            total_us += fitted.split_us + (fitted.sparse_split_us if sparse else 0.0)
        if total_us < best_us:
            best_us, best = total_us, _Tiling(bm, bn, split, tiles / gpu.sms, mma_us, l2_us)
    if layer.kind == "attention":
        # The second product of a fused attention has the dimensions of the first.
        best_us *= layer.flops / max(1, 2 * layer.m * layer.n * layer.k * layer.groups) / _ATTENTION_EFFICIENCY
    return best_us / sustained, best


def _padded_k(layer: LayerGeometry, precision: Precision) -> int:
    # The first convolution of an image network has kernels of its own, which pad three channels to fewer.
    step = min(_ALIGNMENT[precision], 8) if layer.channels <= _FEW_CHANNELS else _ALIGNMENT[precision]
    return _up(layer.channels, step) * step * layer.taps if layer.groups == 1 else layer.k


def _tilings(n: int, k: int, sparse: bool) -> Iterator[tuple[int, int, int]]:
    splits = [split for split in _SPLITS if split == 1 or k >= _SPLIT_REDUCTION * split]
    for bm in _SIDES:
        for bn in _SIDES:
            if not _SMALLEST_TILE <= bm * bn <= _LARGEST_TILE or (sparse and bn < _SPARSE_COLUMNS):
                continue
            # Wider than the product is never best. No rows are ruled out: time must not fall as a batch grows.
            if bn > _SPARSE_COLUMNS and bn >= 2 * n:
                continue
            for split in splits:
                yield bm, bn, split
