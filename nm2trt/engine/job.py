"""What a worker process is asked, and what it answers. Both are JSON, so that no code crosses the border."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nm2trt.artifacts.build import BatchRange, Variant

Backend = Literal["tensorrt", "tensorrt-rtx"]

SPARSE_WEIGHTS = "SPARSE_WEIGHTS"


class EngineJob(BaseModel):
    """One engine to build."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Backend
    onnx: Path
    folder: Path
    """Where `<stem>.plan`, `<stem>.log` and, where the engine can be inspected, `<stem>.layers.json` are written."""
    variant: Variant
    """`sparse` sets SPARSE_WEIGHTS."""
    rebuild: int = 0
    """Number of the repetition; 0 is the variant itself."""
    sm: str | None
    """Compute capability to compile for, "80"; None compiles for the GPU that is present."""
    gpu: str = ""
    """Name of the GPU that kernels are timed on, as its driver gives it: kernel timings are kept apart by it."""
    profile: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
    """Input name -> its smallest, optimal and largest shape; inputs of fixed shape are left out."""
    batch: BatchRange | None = None
    """For the record."""
    timing_cache: Path | None = None
    """Kernel timings, read if the file exists and written back. TensorRT-RTX does not use it."""
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    refittable: bool = False

    @property
    def stem(self) -> str:
        """Name of its files without the ending: "sparse", and "sparse-2" for a repetition."""
        return f"{self.variant}-{self.rebuild + 1}" if self.rebuild else self.variant

    @property
    def plan(self) -> Path:
        """Path of the plan file."""
        return self.folder / f"{self.stem}.plan"

    @property
    def log(self) -> Path:
        """Path of the build log."""
        return self.folder / f"{self.stem}.log"

    @property
    def layers(self) -> Path:
        """Path of the engine inspector's output."""
        return self.folder / f"{self.stem}.layers.json"


class RefitJob(BaseModel):
    """One engine to give new weights. Whoever makes it has checked the plan with `nm2trt.artifacts.check_plan`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: Path
    onnx: Path
    """With the new weights."""
    output: Path
    """The new plan; `plan` is left as it is."""
    log: Path


class BuildProgress(BaseModel):
    """A step of the builder, as its progress monitor reports it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: str
    done: int
    of: int


class WorkerAnswer(BaseModel):
    """The worker's last word. A worker that dies gives none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str = ""
    flags: list[str] = []
    """BuilderFlags as read back from the configuration, not as asked for."""
    sm: str = ""
    """Compute capability that the engine is for."""
    seconds: float = 0.0
    """Of parsing and building, without imports."""
    error: str | None = None
    parser_refused: bool = False
    """Whether the ONNX parser refused operators, which `error` then names."""
    errno: int | None = None
    """Set when the operating system refused a write."""
    filename: str = ""
    """The file that it refused."""
    died: bool = False
    """The process ended without an answer; this one was made for it."""
    note: str = ""
    """What did not work and left the engine as it is, such as an inspector that failed."""
    timing_cache: str = ""
    """How the timing cache was used."""
    targets: list[str] = []
    """Compute capabilities that a probe found the builder able to compile for; empty where the GPU decides."""
