"""build.json: what `nm2trt export` made and proved. Read by profile, package and inspect."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from nm2trt.artifacts.calibration import Agreement, CalibrationDocument
from nm2trt.artifacts.document import Document
from nm2trt.artifacts.facts import Facts
from nm2trt.artifacts.files import FileRecord
from nm2trt.artifacts.host import HostRecord
from nm2trt.artifacts.layer_evidence import LayerEvidence
from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.artifacts.run import ModelRecord, RunResult

_FROZEN = ConfigDict(frozen=True, extra="forbid")


Variant = Literal["dense", "control", "sparse"]
"""`dense`: dense weights, built only where some were given. `control`: the sparse weights, without SPARSE_WEIGHTS.
`sparse`: the sparse weights, with it."""
VARIANTS: tuple[Variant, ...] = ("dense", "control", "sparse")


class BuildSource(BaseModel):
    """Where the network came from."""

    model_config = _FROZEN

    kind: Literal["run", "checkpoint", "onnx"]
    name: str
    """The source's own name, without the folders above it."""
    sha256: str
    """Of the checkpoint or ONNX file."""
    method: str | None = None
    pattern: str | None = None
    data: str | None = None
    model: ModelRecord | None = None
    result: RunResult | None = None


class GraphPort(BaseModel):
    """One input or output of the ONNX graph; a dynamic dimension is named."""

    model_config = _FROZEN

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class BatchRange(BaseModel):
    """Optimization profile of the batch dimension."""

    model_config = _FROZEN

    min: int
    opt: int
    max: int


class OutputNumerics(BaseModel):
    """One output of the graph against the reference."""

    model_config = _FROZEN

    name: str
    max_abs_error: float
    max_abs_error_at: str
    max_rel_error: float
    """Largest absolute error divided by the largest finite magnitude of this output in the reference; infinite where
    no number tells it: another shape or type, NaN or infinities on one side only."""
    argmax_agreement: float | None
    """Over the last axis, axis 1 for maps of rank 4 and more; None where that axis has one entry."""
    reason: str = "agree"
    """Code of what decided: `nm2trt.ort.Reason`."""
    message: str = ""
    """The same for people; empty where the output agrees."""
    summary: str = ""
    """`message` without the place and the values there."""
    elements: int | None = None
    mismatches: int | None = None
    """Integers, booleans or strings that are not equal; None for floating point."""
    nan_count: int = 0
    """In the reference."""
    infinity_count: int = 0
    """In the reference."""


class NumericsRecord(BaseModel):
    """ONNX Runtime's output against the reference's (torch in float32, or the ONNX as found), on the same inputs."""

    model_config = _FROZEN

    reference: str
    inputs: str
    samples: int
    batches: tuple[int, ...]
    max_abs_error: float
    max_abs_error_at: str
    """Sample and output index of the largest error with both values."""
    max_rel_error: float
    """Largest absolute error divided by the largest magnitude of the reference."""
    tolerance: float
    """Bound on max_rel_error."""
    argmax_agreement: float
    """Of the output that agrees least; 1 where no output has a class axis."""
    passed: bool
    outputs: tuple[OutputNumerics, ...] = ()
    """Each output by itself; the figures above are those of the worst."""
    worst: str = ""
    """Its name."""
    notes: tuple[str, ...] = ()
    """What the conversion changed beside types, and how near activations come to its range."""


class EngineRecord(BaseModel):
    """One engine, or the reason that there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    variant: Variant = Field(alias="arm")
    """The flag and the weights, not a finding: see `Variant`."""
    file: str | None
    onnx: str = ONNX_FILE
    """The file of the build folder that it was built from."""
    rebuild: int = 0
    """0, or the number of a repetition that shows how much builds of one variant differ."""
    builder: str
    builder_version: str
    sm: str
    platform: str = ""
    """Operating system and processor of the machine that built it, "linux_x86_64": a plan runs only there."""
    batch: BatchRange | None = None
    """What it was tuned for; None where the graph's shapes are fixed."""
    flags: list[str]
    plugins: tuple[str, ...] = ()
    """Plugin libraries that it needs. Plans that carry host code are never built."""
    timing_cache: str = ""
    """How the timing cache was used, in words."""
    sha256: str | None
    size_bytes: int | None
    seconds: float
    log: str
    layers: tuple[LayerEvidence, ...] = ()
    """What the log and the engine inspector show of each layer; empty where nothing could be read."""
    note: str = ""
    """What went wrong without costing the engine: its inspector, or the end of the build process."""
    error: str | None = None
    """Why there is no engine, in words."""
    error_code: Literal["", "parser-refused"] = ""
    """What kind of error it is: the ONNX parser refused operators, or anything else."""


class CalibrationRecord(BaseModel):
    """What an INT8 network was calibrated on, and what that cost."""

    model_config = _FROZEN

    file: str
    """The whole document, in the build folder: ranges, scales and layers."""
    data: str
    """In words: which samples, and how many are held out."""
    samples: int
    method: str
    placement: str
    weights: Literal["qdq", "int8"]
    layers: int
    """Convolutions and products with constant weights."""
    int8_layers: int
    kept_float: tuple[str, ...]
    """Layers that --max-drop kept in floating point."""
    agreement: Agreement | None
    """Scores and outputs before and after, on held-out samples."""
    problems: tuple[str, ...]
    verdict: Literal["pass", "fail"]

    @classmethod
    def of(cls, document: CalibrationDocument, file: str) -> CalibrationRecord:
        """Shorten a calibration's document.

        Args:
            document: What `calibrate_model` returned.
            file: Where it lies in the build folder.
        """
        return cls(
            file=file,
            data=document.data,
            samples=document.samples,
            method=document.method,
            placement=document.placement,
            weights=document.weights,
            layers=len(document.layers),
            int8_layers=sum(layer.int8 for layer in document.layers),
            kept_float=document.kept_float,
            agreement=document.agreement,
            problems=document.problems,
            verdict=document.verdict,
        )


class BuildDocument(Document):
    """Written by `nm2trt export`. A failed check is recorded here, and exit code 1 says so."""

    SCHEMA: ClassVar[str] = "nm2trt.build/2"
    FILE: ClassVar[str] = "build.json"

    source: BuildSource
    precision: str
    """Type of the weights and the arithmetic: "fp32", "fp16", "bf16", or as found in a foreign ONNX, "int8+fp16"."""
    io_dtype: str
    """Type of the floating-point inputs and outputs, "fp32" unless asked otherwise."""
    opset: int
    exporter: str
    batch: BatchRange | None
    """None where the graph's shapes are fixed."""
    inputs: tuple[GraphPort, ...]
    outputs: tuple[GraphPort, ...]
    numerics: NumericsRecord | None
    calibration: CalibrationRecord | None = None
    """Of `--precision int8`; None where nothing was calibrated here."""
    pattern: dict[str, Any]
    """verify's verdict on model.onnx, as `nm2trt verify --json` prints it."""
    engines: list[EngineRecord]
    engines_note: str
    """What the builder can and cannot prove on this machine, in one sentence."""
    facts: Facts
    verdict: Literal["pass", "fail"]
    files: dict[str, FileRecord]
    host: HostRecord

    def named_code(self) -> dict[str, str | None]:
        """See `Document`."""
        return {"model": self.source.model.name if self.source.model else None, "data": self.source.data}

    def named_files(self) -> list[str]:
        """See `Document`."""
        engines = [name for engine in self.engines for name in (engine.file, engine.onnx, engine.log) if name]
        return [*self.files, *engines]
