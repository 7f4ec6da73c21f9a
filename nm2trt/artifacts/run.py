"""run.json: what `nm2trt train` did. Read by export, profile and the reports."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

from nm2trt.artifacts.document import Document
from nm2trt.artifacts.files import FileRecord
from nm2trt.artifacts.host import HostRecord

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class ModelRecord(BaseModel):
    """All that is needed to build the network again."""

    model_config = _FROZEN

    name: str
    input_shape: tuple[int, ...]
    """One sample, without the batch: [C, H, W] for images."""
    classes: int
    parameters: int


class LayerRecord(BaseModel):
    """One weight as the sparsifier saw it: either sparse with a pattern, or dense with the reason."""

    model_config = _FROZEN

    name: str
    """Parameter name as in the state dict."""
    module: str
    kind: str
    shape: tuple[int, ...]
    pattern: str | None
    reason: str


class SadTotals(BaseModel):
    """Sparse architecture divergence over all sparse layers at the end of training (mask bits that differ)."""

    model_config = _FROZEN

    from_start: int
    """Between the first mask and the last."""
    from_start_normalized: float = Field(
        validation_alias=AliasChoices("from_start_normalized", "from_start_normalised")  # codespell:ignore
    )
    cumulative: int
    """Sum of the mask bits that flipped at each optimizer step."""
    flips_per_weight: float


class RunResult(BaseModel):
    """Where training ended."""

    model_config = _FROZEN

    score_name: str = "accuracy"
    """What `test_score` is: the share of the test samples that are right, or another task's own score."""
    score_better: Literal["higher", "lower"] = "higher"
    test_score: float = Field(validation_alias=AliasChoices("test_score", "test_accuracy"))
    """Measured on the test samples with the weights of the checkpoint; 0 to 1 for shares.
    `test_accuracy` in older run.json files."""
    test_loss: float | None
    """None where it was no number, which JSON cannot hold."""
    train_loss: float | None
    epochs: int
    steps: int
    seconds: float
    sad: SadTotals | None

    @field_validator("test_loss", "train_loss", mode="before")
    @classmethod
    def _number_or_none(cls, value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    @property
    def score(self) -> str:
        """Name and value, such as "accuracy 97.80%"."""
        return f"{self.score_name} {self.test_score:.2%}"


class ThreadsRecord(BaseModel):
    """How many threads torch used on the CPU, and why so many."""

    model_config = _FROZEN

    threads: int
    source: Literal["option", "environment", "state", "work", "cores"]
    """`--threads`; OMP_NUM_THREADS; what the run was started with; the work of a batch; all cores."""
    waiting: Literal["sleep", "spin"]
    """What idle threads do."""
    gflop: float | None = None
    """Work of one batch's forward pass, 1e9 floating-point operations, where the choice followed from it."""


class SessionRecord(BaseModel):
    """A stretch of a run, from its start or a resumption on."""

    model_config = _FROZEN

    from_step: int
    processes: int
    batch_size: int
    """Samples per process and micro-batch; all processes together always take as many."""
    sharded: bool
    """Whether the weights were sharded over the processes."""


class TeacherRecord(BaseModel):
    """What a run was distilled from; weight and temperature are in its configuration."""

    model_config = _FROZEN

    name: str
    """Of the run folder or checkpoint."""
    model: str
    checkpoint_sha256: str


class RunDocument(Document):
    """Written by `nm2trt train` when, and only when, the run is complete."""

    SCHEMA: ClassVar[str] = "nm2trt.run/1"
    FILE: ClassVar[str] = "run.json"

    config: dict[str, Any]
    method: str
    pattern: str | None
    teacher: TeacherRecord | None = None
    data: str
    data_source: str
    train_samples: int
    test_samples: int
    model: ModelRecord
    result: RunResult
    layers: list[LayerRecord]
    device: str
    """What the training ran on."""
    threads: ThreadsRecord | None = None
    """Of the last session, on a CPU; None on a GPU and in older run.json files."""
    sessions: list[SessionRecord] = Field(default_factory=list)
    """In order; more than one where the run was resumed. Empty in older run.json files."""
    files: dict[str, FileRecord]
    host: HostRecord

    @property
    def repeats_to_the_byte(self) -> bool:
        """Whether all sessions summed in the same order, so that a run left alone would end in the same bytes (CPU)."""
        return len({(session.processes, session.sharded) for session in self.sessions}) <= 1

    def named_code(self) -> dict[str, str | None]:
        """See `Document`."""
        return {"model": self.model.name, "data": self.data}

    def named_files(self) -> list[str]:
        """See `Document`."""
        return list(self.files)
