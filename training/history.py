"""What a run records: rows of metrics.jsonl and of sad.csv."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nm2trt.training.sad import Sad


@dataclass(frozen=True, slots=True)
class Session:
    """A stretch of a run, from a start or a resumption on."""

    from_step: int
    processes: int
    batch_size: int
    """Samples per process and micro-batch."""
    sharded: bool
    """Whether the weights are sharded (FSDP2)."""


@dataclass(slots=True)
class History:
    """Grows as the run goes on, and travels in its saved state."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    sad: list[dict[str, Any]] = field(default_factory=list)
    last_sad: Sad | None = None
    seconds: float = 0.0
    """Of training, over all sessions of the run."""
    sessions: list[Session] = field(default_factory=list)

    def record_epoch(self, epoch: int, sad: Sad, row: dict[str, Any]) -> None:
        """Add the end of an epoch."""
        self.last_sad = sad
        self.sad.extend(sad.rows(epoch))
        self.metrics.append({"kind": "epoch", "epoch": epoch, **row})
