"""demo.json: the end-to-end run, summed up. Written by `nm2trt demo` beside every stage's own folder."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from nm2trt.artifacts.document import Document
from nm2trt.artifacts.facts import Facts
from nm2trt.artifacts.files import FileRecord
from nm2trt.artifacts.host import HostRecord

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class DemoRow(BaseModel):
    """One line of the closing table."""

    model_config = _FROZEN

    what: str
    value: str
    detail: str = ""
    source: str
    """The file in the demo's folder that holds the figure."""


class DemoDocument(Document):
    """Written when every stage has run."""

    SCHEMA: ClassVar[str] = "nm2trt.demo/2"
    FILE: ClassVar[str] = "demo.json"

    data: str
    model: str
    pattern: str
    seeds: int
    score_name: str
    """What the scores are, such as the accuracy: the share of the test samples that are right."""
    dense_scores: tuple[float, ...]
    """On the test samples, one per seed."""
    sparse_scores: tuple[float, ...]
    rows: list[DemoRow]
    facts: Facts
    commands: tuple[str, ...]
    problems: list[str]
    """Why the verdict is "fail"; empty when it is "pass"."""
    verdict: Literal["pass", "fail"]
    seconds: float
    files: dict[str, FileRecord]
    host: HostRecord

    def named_files(self) -> list[str]:
        """See `Document`."""
        return list(self.files)
