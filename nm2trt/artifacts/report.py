"""report.json: what `nm2trt profile` measured. Read by the HTML report and by `nm2trt compare`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from nm2trt.artifacts.document import Document
from nm2trt.artifacts.facts import Facts
from nm2trt.artifacts.host import HostRecord
from nm2trt.artifacts.ratio import Bound
from nm2trt.artifacts.ratio import RatioRecord as RatioRecord
from nm2trt.artifacts.report_layers import LayersRecord, LoadRecord, RooflineRecord

_FROZEN = ConfigDict(frozen=True, extra="forbid")

NOISY = 0.05
"""An A/A noise floor above this share hides gains of the size that sparsity brings."""

LAUNCH_BOUND = 0.8
"""Enqueueing that takes more than this share of the computing holds the device up."""

CLOCK_SPREAD = 1.02
"""A GPU clock that moved by more than this factor was not locked."""

VariantName = Literal["dense", "control", "sparse", "sparse-repeat", "torch-eager", "torch-compiled"]
"""dense: dense weights. control: the sparse weights with sparse kernels not allowed. sparse: the sparse weights with
sparse kernels allowed (where the backend knows them). sparse-repeat: the same once more, the noise floor. torch-*: the
network in PyTorch, for reference."""

ExecutionMode = Literal["eager", "compiled", "cuda-graph"]
"""How PyTorch executes a network."""

Finding = Literal["no-difference", "sparse-faster", "sparse-slower", "too-few-rounds", "unpaired"]


def _current_name(name: object) -> object:
    """Reports written before the variant was renamed say sparse-again."""
    return "sparse-repeat" if name == "sparse-again" else name


_RecordedVariant = Annotated[VariantName, BeforeValidator(_current_name)]


class NetworkRecord(BaseModel):
    """One network under test."""

    model_config = _FROZEN

    kind: Literal["build", "onnx", "filled", "trtexec", "table", "run", "checkpoint", "onnx-products"]
    """`filled`: the sparse network's own graph with the pruned weights filled in; for timing only. `trtexec` and
    `table`: others' measurements; the network itself was not seen. `run` and `checkpoint`: a network in PyTorch.
    `onnx-products`: the matrix products of an ONNX file, one by one, in PyTorch."""
    name: str
    """The file's or folder's own name, without the folders above it."""
    sha256: str
    """Of the ONNX file; of the ONNX file that was filled; of the first file of a measurement."""
    method: str | None = None
    pattern: str | None = None
    model: str | None = None
    zero_share: float | None
    """Share of zeros among the weights of convolutions and matrix products, 0 to 1; None where they were not seen."""
    note: str = ""


def has_zeros(record: NetworkRecord) -> bool:
    """Whether a network has zeros among its weights that show in a share of one decimal."""
    return record.zero_share is None or round(100 * record.zero_share, 1) > 0


class RunnerRecord(BaseModel):
    """What ran the networks, with every setting that a repetition needs."""

    model_config = _FROZEN

    backend: Literal["onnxruntime", "tensorrt", "tensorrt-rtx", "torch", "torch-sparse", "trtexec", "table"]
    version: str
    provider: str
    """Execution provider, GPU, or who measured."""
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
    rebuilds: int = 1
    """How many times every variant was built (or opened) anew and timed."""


class SpreadRecord(BaseModel):
    """Latencies of single calls in ms."""

    model_config = _FROZEN

    calls: int
    median_ms: float
    p90_ms: float | None
    """None where others' summary does not hold it."""
    p99_ms: float | None


class VariantRecord(BaseModel):
    """One variant at one batch size; latencies of single calls, inputs and outputs on the device."""

    model_config = _FROZEN

    name: _RecordedVariant
    calls: int
    """0 where others' summary does not tell."""
    median_ms: float
    p90_ms: float | None
    """None where others' summary does not hold it."""
    p99_ms: float | None
    mean_ms: float
    coefficient_of_variation: float | None
    """None where single calls were not at hand."""
    throughput_per_s: float
    """Samples per second: batch over mean latency, or as trtexec printed it."""
    quantiles_ms: tuple[float, ...]
    """Latency at 0, 1, ... 100 % of the calls; empty where single calls were not at hand."""
    with_transfers: SpreadRecord | None = None
    """Copies to the device and back included; None where there is nothing to copy."""
    enqueue_ms: float | None = None
    """Median time the host needs to launch a call; None on backends that do not enqueue."""
    memory_bytes: int | None = None
    """Device memory of weights and working space, where the backend tells."""


class ContrastRecord(BaseModel):
    """Two variants against each other, beside the main pair."""

    model_config = _FROZEN

    over: _RecordedVariant
    under: _RecordedVariant
    ratio: RatioRecord
    finding: Finding
    sentence: str
    shows: str = ""
    """What the pair tells, without its figures."""


class DeviceState(BaseModel):
    """Clocks and load at one moment; None where the device does not tell."""

    model_config = _FROZEN

    device: str
    clock_sm_mhz: int | None = None
    clock_sm_max_mhz: int | None = None
    clock_memory_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    memory_used_bytes: int | None = None
    throttle_reasons: tuple[str, ...] = ()
    cpu_load: float | None = None
    """Processes that wanted a CPU over the last minute, for measurements on the host."""


class BatchRecord(BaseModel):
    """All variants at one batch size."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    batch: int
    mode: ExecutionMode | None = None
    """How PyTorch executed the network; None on other backends."""
    rounds: int
    """0: the variants were timed one after the other by somebody else."""
    calls_per_round: int
    warmup_s: float
    steady: bool
    """Warm-up ended because latencies were steady, not because its time was up."""
    baseline: _RecordedVariant = "dense"
    """What the sparse variant is held against."""
    variants: tuple[VariantRecord, ...] = Field(alias="arms")
    ratio: RatioRecord
    """Baseline over sparse: above 1, the sparse variant took less time."""
    noise: RatioRecord
    """Sparse-again over sparse: the same network twice, so whatever is not 1 here is noise."""
    noise_floor: Bound
    """The farthest that `noise` reaches from 1, as a share: 0.021 is 2.1 %; null: unknown."""
    finding: Finding
    sentence: str
    build_ratios: tuple[RatioRecord, ...] = ()
    """One for each time the variants were built anew, where that was more than once."""
    contrasts: tuple[ContrastRecord, ...] = ()
    tuned_for: int | None = None
    """Batch that the engines were tuned for; None where the backend does not tune."""
    device_before: DeviceState | None = None
    device_after: DeviceState | None = None

    @property
    def label(self) -> str:
        """Batch size, and the mode where there are several: "8", "8, cuda-graph"."""
        return str(self.batch) if self.mode is None else f"{self.batch}, {self.mode}"

    def variant(self, name: str) -> VariantRecord | None:
        """Find a variant; None where it was not timed."""
        return next((variant for variant in self.variants if variant.name == name), None)


class ReportDocument(Document):
    """Written by `nm2trt profile`."""

    SCHEMA: ClassVar[str] = "nm2trt.report/2"
    FILE: ClassVar[str] = "report.json"

    sparse: NetworkRecord
    dense: NetworkRecord
    precision: str
    runner: RunnerRecord
    backend_choice: str
    """Which backend was asked for and why this one ran."""
    protocol: ProtocolRecord
    batches: list[BatchRecord]
    layers: LayersRecord | None = None
    roofline: RooflineRecord | None = None
    load: LoadRecord | None = None
    headline: str
    facts: Facts
    notes: tuple[str, ...] = ()
    """What a reader must know and no figure says: variants that could not run, defaults of others' tools."""
    command: str
    """Repeats the measurement, with names in place of this machine's folders."""
    host: HostRecord

    def remarks(self) -> list[str]:
        """What a reader must know before trusting the numbers, in sentences; often empty."""
        return [*_timing_remarks(self.batches), *_device_remarks(self.batches), *self.notes]


def _timing_remarks(batches: list[BatchRecord]) -> list[str]:
    remarks = []
    noisy = [one.label for one in batches if one.rounds and one.noise_floor > NOISY]
    if noisy:
        remarks.append(
            f"The same network differed from itself by more than {100 * NOISY:.0f} % at batch {_joined(noisy)}: "
            "the machine was busy or its clocks moved. Measure on an idle machine, or raise --duration."
        )
    unsteady = [one.label for one in batches if not one.steady]
    if unsteady:
        remarks.append(f"Latencies were not yet steady when warm-up ended at batch {_joined(unsteady)}.")
    foreign = [one for one in batches if one.tuned_for is not None and one.tuned_for != one.batch]
    if foreign:
        remarks.append(
            f"The engines were tuned for batch {foreign[0].tuned_for}, so batch "
            f"{', '.join(str(one.batch) for one in foreign)} was not measured on engines tuned for it: kernels, sparse "
            "ones too, were chosen for another size. Export once more with --batch MIN:OPT:MAX and that batch as OPT."
        )
    bound = [
        one.label
        for one in batches
        for variant in one.variants
        if variant.name == "sparse"
        and variant.enqueue_ms is not None
        and variant.enqueue_ms > LAUNCH_BOUND * variant.median_ms
    ]
    if bound:
        remarks.append(
            f"Launching took more than {100 * LAUNCH_BOUND:.0f} % of the computing at batch {_joined(bound)}: the "
            "host held the device up, and faster kernels cannot show. Use CUDA graphs or a larger batch."
        )
    return remarks


def _joined(labels: list[str]) -> str:
    return ("; " if any("," in label for label in labels) else ", ").join(labels)


def _device_remarks(batches: list[BatchRecord]) -> list[str]:
    states = [state for one in batches for state in (one.device_before, one.device_after) if state is not None]
    remarks = []
    clocks = [state.clock_sm_mhz for state in states if state.clock_sm_mhz]
    if clocks and max(clocks) > CLOCK_SPREAD * min(clocks):
        remarks.append(
            f"The GPU's clock moved between {min(clocks)} and {max(clocks)} MHz. Lock it (nvidia-smi -lgc) and measure "
            "again: a sparse engine draws less power, so a moving clock can pass for a gain or hide one."
        )
    held = sorted({reason for state in states for reason in state.throttle_reasons})
    if held:
        remarks.append(f"The GPU held its clock down during the measurement: {', '.join(held)}.")
    loads = [state.cpu_load for state in states if state.cpu_load is not None]
    cpus = next((state.device for state in states if state.cpu_load is not None), "")
    if loads and loads[0] > 1.5:
        remarks.append(f"{cpus} was busy when the measurement began: {loads[0]:.1f} processes wanted a CPU.")
    return remarks
