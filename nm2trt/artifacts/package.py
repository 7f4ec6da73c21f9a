"""package.json: what `nm2trt package` put into a model repository, and what each version needs. Read by serve."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from nm2trt.artifacts.build import BatchRange, GraphPort
from nm2trt.artifacts.document import Document
from nm2trt.artifacts.files import FileRecord

_FROZEN = ConfigDict(frozen=True, extra="forbid")

Platform = Literal["tensorrt_plan", "onnxruntime", "python", "nvinfer"]
Server = Literal["triton", "triton-cpu", "deepstream", "onnxruntime"]

KEPT_LOADED = 2
"""Versions that Triton holds at once, so that a request may still name the one before."""


def network_digest(sha256_by_file: Mapping[str, str]) -> str:
    """Join the digests of a graph's files into one; of a single file it is the file's own.

    Args:
        sha256_by_file: The graph and its external data.
    """
    if len(sha256_by_file) == 1:
        return next(iter(sha256_by_file.values()))
    text = "".join(f"{name}\0{digest}\n" for name, digest in sorted(sha256_by_file.items()))
    return hashlib.sha256(text.encode()).hexdigest()


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

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    version: int
    created_utc: str
    variant: Literal["dense", "control", "sparse"] = Field(alias="arm")
    build: str
    """Name of the build folder, without the folders above it."""
    build_sha256: str
    """Of build.json."""
    method: str | None
    pattern: str | None
    precision: str
    batch: BatchRange | None = None
    """Sizes that this version's engine was built for; None: fixed shapes, or written before versions had their own."""
    plans: list[PlanRequirement]
    files: dict[str, FileRecord]

    @property
    def plan_files(self) -> dict[str, str]:
        """Compute capability "80" -> file; config.pbtxt names these for all versions at once."""
        return {plan.sm: plan.file for plan in self.plans}

    @property
    def tensorrt(self) -> frozenset[str]:
        """TensorRT that the plans need; a server has one."""
        return frozenset(plan.tensorrt for plan in self.plans)

    @property
    def network_sha256(self) -> str:
        """Digest of the graph and of the weights beside it: what tells one network from another of the same layers.

        For a graph with its weights inside it is the sha256 of model.onnx.
        """
        parts = {name: one.sha256 for name, one in self.files.items() if name not in self.plan_files.values()}
        parts = {name: digest for name, digest in parts.items() if not name.endswith(".py")}
        return network_digest(parts)


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
    instances: int = 1
    """Per GPU, or on the CPU."""
    cuda_graphs: bool = True
    """As asked; only plans have them."""
    max_batch_asked: int | None = None
    """--max-batch as given; None: the largest that every served version takes."""
    withdrawn: tuple[int, ...] = ()
    """Versions that lie in the repository and are not served: rolled back, or damaged."""
    last_version: int = 0
    """Highest number that was ever given: one that was removed is not given again."""
    versions: list[VersionRecord]
    """In ascending order."""

    @property
    def served(self) -> list[VersionRecord]:
        """Versions that config.pbtxt has Triton load, in ascending order.

        The last is the one that a request without a version gets. The one before it stays loaded where both can run
        under one config.pbtxt: with the same plan files and the same TensorRT. ONNX Runtime's engine cache is keyed
        without weights, so where it builds engines one version is loaded at a time, with a cache of its own.
        """
        active = [one for one in self.versions if one.version not in self.withdrawn]
        if not active:
            return []
        newest = active[-1]
        if self.platform == "onnxruntime" and self.gpu:
            return [newest]
        before = [one for one in active[:-1] if (one.plan_files, one.tensorrt) == (newest.plan_files, newest.tensorrt)]
        return [*before[-(KEPT_LOADED - 1) :], newest]

    @property
    def current(self) -> VersionRecord:
        """The version that a request without a version gets."""
        return self.served[-1]

    def named_files(self) -> list[str]:
        """See `Document`."""
        return [self.model, *(name for version in self.versions for name in version.files)]
