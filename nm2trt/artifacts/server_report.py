"""server.json: what `nm2trt check-server` asked a running server, and what it answered."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from nm2trt.artifacts.document import Document
from nm2trt.artifacts.host import HostRecord

_FROZEN = ConfigDict(frozen=True, extra="forbid")

Protocol = Literal["http", "grpc"]


class MetadataRecord(BaseModel):
    """The server's description of the model against the build's."""

    model_config = _FROZEN

    protocol: Protocol
    server: str
    """Name and version, as the server gives them."""
    platform: str
    versions: tuple[str, ...]
    differences: tuple[str, ...]
    """Empty where names, types and shapes agree."""


class ServedOutput(BaseModel):
    """One output of the server against ONNX Runtime's, over all requests."""

    model_config = _FROZEN

    name: str
    reason: str
    """Code of what decided: `nm2trt.ort.Reason`."""
    message: str
    """The same for people; empty where the output agrees."""
    max_abs_error: float
    max_rel_error: float
    """Over the largest finite magnitude of this output in the reference; infinite where no number tells it."""


class OutputsRecord(BaseModel):
    """The server's outputs against ONNX Runtime's on the build's own graph, on the same samples."""

    model_config = _FROZEN

    protocol: Protocol
    inputs: str
    """What the samples are."""
    samples: int
    batches: tuple[int, ...]
    max_abs_error: float
    max_rel_error: float
    """Largest absolute error over the largest magnitude of the reference, per output; the worst output's. Infinite
    where no number tells it: another shape or type, NaN on one side only."""
    tolerance: float
    worst_at: str
    passed: bool
    version: str = ""
    """Version that the answers must name; empty where the server lists none."""
    requests: int = 0
    errors: int = 0
    """Requests without an answer that can be compared."""
    wrong: int = 0
    """Answers that differ."""
    first_error: str = ""
    """Which request failed first, and how."""
    first_failure: str = ""
    """Code of that: `nm2trt.serve.answers.Failure`."""
    outputs: tuple[ServedOutput, ...] = ()


class LoadRecord(BaseModel):
    """Requests of one sample each from `concurrency` clients that wait for their answer before they ask again."""

    model_config = _FROZEN

    protocol: Protocol
    concurrency: int
    seconds: float
    requests: int
    """Answered rightly."""
    errors: int
    wrong: int
    """Answered, but not as ONNX Runtime does."""
    first_error: str
    throughput_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    client_cpu_share: float
    """Processor time of the clients over wall time, in cores: near 1 or above, the clients may be the limit."""


class SaturationRecord(BaseModel):
    """Where more clients brought no more throughput."""

    model_config = _FROZEN

    protocol: Protocol
    saturated: bool
    concurrency: int
    """Of the level with the highest throughput."""
    throughput_per_s: float
    p99_ms: float
    sentence: str


class ServerReportDocument(Document):
    """Written by `nm2trt check-server`."""

    SCHEMA: ClassVar[str] = "nm2trt.server-report/1"
    FILE: ClassVar[str] = "server.json"

    model: str
    version: str
    """The version that was asked; empty: the server's choice."""
    build: str
    onnx_sha256: str
    precision: str
    metadata: list[MetadataRecord]
    outputs: list[OutputsRecord]
    load: list[LoadRecord]
    saturation: list[SaturationRecord]
    problems: list[str]
    """Why the verdict is "fail"; empty when it is "pass"."""
    notes: tuple[str, ...] = ()
    """What the check could not see."""
    headline: str
    verdict: Literal["pass", "fail"]
    command: str
    host: HostRecord
