"""report.json: what `nm2trt profile` measured. Read by the HTML report and by whoever compares two reports."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from nm2trt.artifacts.document import Document
from nm2trt.artifacts.facts import Facts
from nm2trt.artifacts.host import HostRecord

_FROZEN = ConfigDict(frozen=True, extra="forbid")

NOISY = 0.05
"""An A/A noise floor above this share hides gains of the size that sparsity brings."""


class NetworkRecord(BaseModel):
    """One network under test."""

    model_config = _FROZEN

    kind: Literal["build", "onnx", "filled"]
    """`filled`: the sparse network's own graph with the pruned weights filled in; for timing only."""
    name: str
    """The file's or folder's own name, without the folders above it."""
    sha256: str
    """Of the ONNX file; of the ONNX file that was filled."""
    method: str | None = None
    pattern: str | None = None
    model: str | None = None
    zero_share: float
    """Share of zeros among the weights of convolutions and matrix products, 0 to 1."""
    note: str = ""


class RunnerRecord(BaseModel):
    """What ran the networks, with every setting that a repetition needs."""

    model_config = _FROZEN

    backend: Literal["onnxruntime", "tensorrt"]
    version: str
    provider: str
    threads: int | None
    settings: dict[str, str]
    clock: str
    """What a latency covers and which clock took it."""
    sparse_kernels: bool | None
    """Whether the backend has 2:4 kernels at all; None when that could not be told."""
    note: str
    """The plain statement about sparse kernels on this backend."""


class ProtocolRecord(BaseModel):
    """How the timings were taken."""

    model_config = _FROZEN

    duration_s: float
    """Budget of measuring per batch, warm-up apart."""
    seed: int
    confidence: float
    resamples: int


class ArmRecord(BaseModel):
    """One arm at one batch size; latencies of single calls."""

    model_config = _FROZEN

    name: Literal["dense", "sparse", "sparse-again"]
    calls: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    coefficient_of_variation: float
    throughput_per_s: float
    """Samples per second: batch over mean latency."""
    quantiles_ms: tuple[float, ...]
    """Latency at 0, 1, ... 100 % of the calls."""


class RatioRecord(BaseModel):
    """Ratio of two arms' latencies: median over rounds of the paired ratio, with its bootstrap interval."""

    model_config = _FROZEN

    value: float
    low: float
    high: float


class BatchRecord(BaseModel):
    """All arms at one batch size."""

    model_config = _FROZEN

    batch: int
    rounds: int
    calls_per_round: int
    warmup_s: float
    steady: bool
    """Warm-up ended because latencies were steady, not because its time was up."""
    arms: tuple[ArmRecord, ...]
    ratio: RatioRecord
    """Dense over sparse: above 1, the sparse arm took less time."""
    noise: RatioRecord
    """Sparse-again over sparse: the same network twice, so whatever is not 1 here is noise."""
    noise_floor: float
    """The farthest that `noise` reaches from 1, as a share: 0.021 is 2.1 %."""
    finding: Literal["no-difference", "sparse-faster", "sparse-slower", "too-few-rounds"]
    sentence: str


class ReportDocument(Document):
    """Written by `nm2trt profile`."""

    SCHEMA: ClassVar[str] = "nm2trt.report/1"
    FILE: ClassVar[str] = "report.json"

    sparse: NetworkRecord
    dense: NetworkRecord
    precision: str
    runner: RunnerRecord
    backend_choice: str
    """Which backend was asked for and why this one ran."""
    protocol: ProtocolRecord
    batches: list[BatchRecord]
    headline: str
    facts: Facts
    command: str
    """Repeats the measurement, with names in place of this machine's folders."""
    host: HostRecord

    def remarks(self) -> list[str]:
        """What a reader must know before trusting the numbers, in sentences; often empty."""
        remarks = []
        noisy = [str(batch.batch) for batch in self.batches if batch.noise_floor > NOISY]
        if noisy:
            remarks.append(
                f"The same network differed from itself by more than {100 * NOISY:.0f} % at batch {', '.join(noisy)}: "
                "the machine was busy or its clocks moved. Measure on an idle machine, or raise --duration."
            )
        unsteady = [str(batch.batch) for batch in self.batches if not batch.steady]
        if unsteady:
            remarks.append(f"Latencies were not yet steady when warm-up ended at batch {', '.join(unsteady)}.")
        return remarks
