"""GPU.json: what `nm2trt benchmark-gpu` measured, and what was fitted to it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from nm2trt.artifacts import Document, HostRecord
from nm2trt.artifacts.ratio import Bound, RatioRecord
from nm2trt.artifacts.report import DeviceState, Finding
from nm2trt.estimate.gpus import GpuSpec
from nm2trt.estimate.kernel import KernelConstants

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class MachineRecord(BaseModel):
    """The GPU, and the libraries whose kernels were timed."""

    model_config = _FROZEN

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    l2_mib: float
    memory_gib: float
    driver: str | None
    torch: str
    cuda: str | None
    cublas: str | None = None
    cusparselt: str | None
    backends: tuple[str, ...]
    """Each of torch's 2:4 backends, or why it cannot run here."""


class SparseTimes(BaseModel):
    """One backend's 2:4 product beside the dense one."""

    model_config = _FROZEN

    backend: str
    searched: bool
    """By the algorithm that the library's search found, not by its default."""
    algorithm: tuple[int, int, int] | None = None
    """cuSPARSELt's id, split K and its mode."""
    median_us: float
    ratio: RatioRecord
    """Dense over sparse."""
    noise: RatioRecord
    """The same sparse product twice."""
    noise_floor: Bound
    finding: Finding
    kernel: str
    """Name of the longest kernel that ran."""
    chosen: bool
    """Whether that name is a sparse kernel's."""
    relative_error: float
    """Largest difference to the dense product of the same weights over its largest value."""


class PointRecord(BaseModel):
    """One product, dense against every backend."""

    model_config = _FROZEN

    m: int
    n: int
    k: int
    dtype: str
    origin: str
    rounds: int
    launches_per_round: int
    dense_us: float
    dense_kernel: str
    sparse: tuple[SparseTimes, ...]
    refused: tuple[str, ...] = ()
    """Backends that do not take this weight, or failed, with the reason."""


class GpuBenchmarkDocument(Document):
    """Written by `nm2trt benchmark-gpu`, read by `nm2trt estimate --gpu-file`."""

    SCHEMA: ClassVar[str] = "nm2trt.gpu-benchmark/1"

    machine: MachineRecord
    kernels: Literal["torch"] = "torch"
    """Whose kernels were timed: cuBLAS and torch's 2:4 backends, not TensorRT's."""
    copy_gb_s: float
    """A pass over device memory, bytes read and written."""
    launch_us: float
    """Time of an empty kernel inside a CUDA graph."""
    eager_launch_us: float
    """Time between two kernels that the host launches one by one."""
    timer: str
    points: tuple[PointRecord, ...]
    left_out: tuple[str, ...]
    """Products for which there was no time, or that failed, with the reason."""
    gpu: GpuSpec
    constants: KernelConstants | None
    """Fitted to `points`; None where there were too few."""
    before: DeviceState | None
    after: DeviceState | None
    duration_s: float
    seed: int
    sentence: str
    notes: tuple[str, ...] = ()
    host: HostRecord
