"""OUT.calibration.json: what `nm2trt calibrate` did to a network, and what it proved about the result."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from nm2trt.artifacts.document import Document
from nm2trt.artifacts.files import sha256_of
from nm2trt.artifacts.host import HostRecord

_FROZEN = ConfigDict(frozen=True, extra="forbid")

SUFFIX = ".calibration.json"


class ModelFile(BaseModel):
    """One ONNX file."""

    model_config = _FROZEN

    name: str
    """Without the folders above it."""
    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path) -> ModelFile:
        """Record a file as it is now.

        Raises:
            OSError: It cannot be read.
        """
        return cls(name=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size)


class TensorRange(BaseModel):
    """One quantized activation."""

    model_config = _FROZEN

    tensor: str
    rules: tuple[str, ...]
    """Names of the placement rules that chose it."""
    smallest: float | None
    """Over all calibration samples; None where the range comes from a cache."""
    largest: float | None
    reach: float
    """Largest magnitude that INT8 represents: 127 times the scale."""
    scale: float
    clipped_share: float | None
    """Share of the calibration values beyond `reach`, 0 to 1, to within a bin of the histogram."""


class LayerRecord(BaseModel):
    """One convolution or matrix product with a constant weight."""

    model_config = _FROZEN

    name: str
    weight: str
    op: str
    shape: tuple[int, ...]
    int8: bool
    """Its weight and its activation are quantized."""
    why_not: str
    """Why it is left in floating point; empty where it is INT8."""
    output_int8: bool
    """Everything behind it reads an INT8 tensor, so that its kernel may write INT8."""
    end_to_end: bool
    """INT8 weight, input and output: what a sparse INT8 kernel needs."""
    pattern: str
    verdict_before: str
    """Of `nm2trt verify` on the float model."""
    verdict_after: str
    """Of `nm2trt verify` on the result."""
    density_before: float | None
    density_after: float | None


class OutputAgreement(BaseModel):
    """One output of the quantized network against the same output of the network as it was given."""

    model_config = _FROZEN

    name: str
    cosine: float | None
    """Mean over samples; None of integers and of empty outputs."""
    sqnr_db: float | None
    argmax_agreement: float | None
    equal_share: float | None
    """Share of equal elements of integers, booleans and strings; None of floating point."""
    nan_count: int = 0
    """In the network as it was given."""
    infinity_count: int = 0
    """In the network as it was given."""
    problem: str = ""
    """NaN or infinities on one side only, another shape or type; empty where there are none."""


class Agreement(BaseModel):
    """The quantized network against the file as it was given, on samples that the ranges never saw."""

    model_config = _FROZEN

    samples: int
    score_name: str | None
    """What the score is, such as "accuracy"; None where there are no labels."""
    score_better: Literal["higher", "lower"] = "higher"
    score_before: float | None
    """0 to 1."""
    score_after: float | None
    cosine: float
    """Mean over samples of the cosine between both outputs; of the output where it is least."""
    sqnr_db: float
    """Signal to quantization noise: 10 log10(sum of squares / sum of squared differences), in dB; of the output where
    it is least."""
    argmax_agreement: float | None
    """Share of the positions where both outputs have their largest value at the same place along the last axis; of the
    output where it is least."""
    outputs: tuple[OutputAgreement, ...] = ()
    """Each output by itself."""

    @property
    def drop_points(self) -> float | None:
        """What quantization cost, in percentage points, whichever scores are better; negative where it helped."""
        if self.score_before is None or self.score_after is None:
            return None
        lost = 100 * (self.score_before - self.score_after)
        return lost if self.score_better == "higher" else -lost


class Sensitivity(BaseModel):
    """One layer quantized alone, all others in floating point, on calibration samples."""

    model_config = _FROZEN

    layer: str
    sqnr_db: float
    score_drop_points: float | None


class CompileRecord(BaseModel):
    """What an ahead-of-time build shows. It proves that the graph compiles, never that sparse kernels run."""

    model_config = _FROZEN

    builder: str
    version: str
    sm: str
    error: str | None
    seconds: float
    int8_layers: int
    """Convolutions and products of the dump that read INT8 data and INT8 weights."""
    layers: int
    """Convolutions and products of the dump."""
    residual_adds: int
    """Residual additions whose skip input was quantized."""
    residual_adds_fused: int
    """Of these, how many share one kernel with the quantization of their result or with a convolution."""
    note: str


class CalibrationDocument(Document):
    """Written by `nm2trt calibrate` beside its result."""

    SCHEMA: ClassVar[str] = "nm2trt.calibration/1"

    source: ModelFile
    output: ModelFile
    data: str
    method: str
    placement: str
    weights: Literal["qdq", "int8"]
    samples: int
    tensors: tuple[TensorRange, ...]
    layers: tuple[LayerRecord, ...]
    agreement: Agreement | None
    sensitivity: tuple[Sensitivity, ...]
    kept_float: tuple[str, ...]
    """Layers that --max-drop kept in floating point."""
    compiled: CompileRecord | None
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    """Why the verdict is fail, one line each."""
    verdict: Literal["pass", "fail"]
    seconds: float
    host: HostRecord


def document_path(onnx: Path) -> Path:
    """Where the document of a calibrated ONNX file lies."""
    return onnx.with_suffix(SUFFIX)
