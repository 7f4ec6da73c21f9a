"""package.json: what `nm2trt package` put into a model repository, and what each version needs. Read by serve."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from nm2trt.artifacts.build import BatchRange, GraphPort
from nm2trt.artifacts.document import Document
from nm2trt.artifacts.files import FileRecord

_FROZEN = ConfigDict(frozen=True, extra="forbid")

Platform = Literal["tensorrt_plan", "onnxruntime", "python", "nvinfer"]
Server = Literal["triton", "triton-cpu", "deepstream", "onnxruntime"]


class PlanRequirement(BaseModel):
    """What a server must have before it may load one plan: a plan is code for one GPU and one TensorRT."""

    model_config = _FROZEN

    file: str
    """Inside the version's folder."""
    tensorrt: str
    sm: str
    platform: str
    """Operating system and processor, "linux_x86_64"; empty where the build did not record it."""
    flags: list[str]
    triton: str
    """Which Triton release has this TensorRT, in words; says so where that is not known."""


class VersionRecord(BaseModel):
    """One numbered version: where it came from and the sha256 of its files."""

    model_config = _FROZEN

    version: int
    created_utc: str
    arm: Literal["dense", "control", "sparse"]
    build: str
    """Name of the build folder, without the folders above it."""
    build_sha256: str
    """Of build.json."""
    method: str | None
    pattern: str | None
    precision: str
    plans: list[PlanRequirement]
    files: dict[str, FileRecord]


class PackageDocument(Document):
    """Lies beside config.pbtxt. All versions have one interface, so that a new one can replace an old one."""

    SCHEMA: ClassVar[str] = "nm2trt.package/1"
    FILE: ClassVar[str] = "package.json"

    model: str
    server: Server
    platform: Platform
    gpu: bool
    max_batch: int
    """0 where the graph's shapes are fixed and the server does not batch."""
    queue_delay_us: int
    batch: BatchRange | None
    inputs: tuple[GraphPort, ...]
    outputs: tuple[GraphPort, ...]
    versions: list[VersionRecord]
    """In ascending order; the last is the one that a request without a version gets."""

    def named_files(self) -> list[str]:
        """See `Document`."""
        return [self.model, *(name for version in self.versions for name in version.files)]
