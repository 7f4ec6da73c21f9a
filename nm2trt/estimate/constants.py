"""The constants behind the kernel model: what they mean, where they come from, how far they spread."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nm2trt.errors import InputError
from nm2trt.estimate.gpus import Precision


class Spread(BaseModel):
    """Measured over predicted: of engines held back from fit and range, four of five points lie between the two."""

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
    """Of layers ("dense", "sparse", "gain": dense over sparse kernel) and of whole engines ("total", "ratio"); narrower
    ones behind a dot ("dense.int8", "gain.gemm"), those of GPUs that no point is of behind ".far"."""
    covered_flops: tuple[float, float] | None = None
    """Smallest and largest layer among those fitted on."""
    sparse_kernel_us: float = 0.0
    """More for launch, ramp-up and drain of a sparse kernel."""
    kernels: Literal["tensorrt", "torch"] = "tensorrt"
    """Whose kernels were measured."""
    soft_wave: float = 0.0
    """Share of the last wave's empty places that costs nothing."""
    split_convolutions: bool = True
    """Whether the reduction of a convolution may be split; no recorded one was."""
    least_columns: dict[Precision, int] = {}
    """Narrowest tile of dense kernels, in output channels."""
    least_sparse_tile: dict[Precision, int] = {}
    """Smallest tile of sparse kernels, in outputs."""
    tile_rows: tuple[int, ...] = (32, 64, 128, 256)
    """Rows that tiles can have."""
    l2_scale: dict[str, float] = {}
    """Operands from L2 a clock and SM by compute capability, against the A100's (multicast to several SMs)."""
    weights_stream: bool = False
    """Whether weights come from device memory in every layer; else they count as tensors that may still be in L2."""
    l2_resident: float = 1.0
    """Share of L2 that keeps tensors from one layer to the next."""
    attention_share: float | None = None
    """Share of the peak that a fused attention reaches; None: a GEMM's tiles, less efficient."""
    operand_limit: dict[Precision, float] = {}
    """Sparse over dense multiply-adds as far as operands out of shared memory allow, on an A100; where it is given it
    stands in for `sparse_speedup`."""
    operand_scale: dict[str, float] = {}
    """The same limit by compute capability ("90"), against the A100's, at equal FLOP and bytes a clock."""
    watts_per_tflops: dict[Precision, float] = {}
    """Board power that Tensor Cores need at the clock behind the peaks, on the A100's process."""
    watts_scale: dict[str, float] = {}
    """The same by compute capability, against the A100's."""
    power_exponent: float = 1.0
    """Of the share of that power which the board has: clocks fall slower than power."""
    sparse_power: float = 0.0
    """Energy of a sparse kernel against a dense one's for the same product; 0: a power limit slows both the same."""
    floor_clock_mhz: float = 0.0
    """Clock at which the floor was fitted; elsewhere it scales with clocks. 0: the same on every GPU."""
    moved: dict[str, tuple[float, float]] = {}
    """Smallest and largest value of each fitted constant when one engine after the other was held back."""
    boards: tuple[str, ...] = ()
    """GPUs whose whole engines the fit knows, by key."""
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
            f"constants: {said}", where=path, hint="write the file again with nm2trt benchmark-gpu"
        ) from None
