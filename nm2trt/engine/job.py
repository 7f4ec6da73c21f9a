"""What a worker process is asked, and what it answers. Both are JSON, so that no code crosses the border."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

Backend = Literal["tensorrt", "tensorrt-rtx"]
Arm = Literal["dense", "sparse"]

SPARSE_WEIGHTS = "SPARSE_WEIGHTS"


class EngineJob(BaseModel):
    """One engine to build."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Backend
    onnx: Path
    folder: Path
    """Where `<arm>.plan`, `<arm>.log` and, where the engine can be inspected, `<arm>.layers.json` are written."""
    arm: Arm
    """`sparse` sets SPARSE_WEIGHTS."""
    sm: str | None
    """Compute capability to compile for, "80"; None compiles for the GPU that is present."""
    profile: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
    """Input name -> its smallest, optimal and largest shape."""

    @property
    def plan(self) -> Path:
        """Path of the plan file."""
        return self.folder / f"{self.arm}.plan"

    @property
    def log(self) -> Path:
        """Path of the build log."""
        return self.folder / f"{self.arm}.log"

    @property
    def layers(self) -> Path:
        """Path of the engine inspector's output."""
        return self.folder / f"{self.arm}.layers.json"


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
    errno: int | None = None
    """Set when the operating system refused a write."""
    note: str = ""
    targets: list[str] = []
    """Compute capabilities that a probe found the builder able to compile for; empty where the GPU decides."""
