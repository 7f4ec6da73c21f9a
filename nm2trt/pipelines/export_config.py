"""Options of `nm2trt export`, checked together before any work is done."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from nm2trt.artifacts import BatchRange
from nm2trt.artifacts.files import check_output
from nm2trt.calibration.settings import Settings
from nm2trt.engine.settings import EngineSettings
from nm2trt.errors import ConfigError
from nm2trt.export.inputs import INPUT, InputSpec, parse_fixed, parse_inputs, parse_sizes
from nm2trt.selectors import parse_batch_range, parse_shape

PrecisionName = Literal["fp32", "fp16", "bf16", "int8"]
IoDtypeName = Literal["fp32", "same"]
BuilderName = Literal["auto", "tensorrt", "tensorrt-rtx", "none"]

_SM = re.compile(r"[1-9][0-9]{1,2}")


USUAL_BATCH = BatchRange(min=1, opt=8, max=64)
_CHOICES = {"precision": PrecisionName, "builder": BuilderName, "io_dtype": IoDtypeName}
_CALIBRATION_FLAGS = {"samples": "--calibration-samples"}


class SourceOptions(BaseModel):
    """What the source itself does not tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    """Name of a checkpoint's network."""
    input_shape: str | None = None
    inputs: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    classes: int | None = None
    data: str | None = None
    data_dir: Path | None = None
    samples: Path | None = None
    external_data: bool = False
    float_bias: bool = False
    trust: bool = False
    """Import code that a run folder names although this machine did not write it."""

    @field_validator("classes")
    @classmethod
    def _some(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise PydanticCustomError("classes", "must be 1 or more")
        return value

    @field_validator("input_shape")
    @classmethod
    def _shape(cls, value: str | None) -> str | None:
        if value is not None:
            _reraised(lambda: parse_shape(value, "--input-shape"))
        return value

    @field_validator("inputs")
    @classmethod
    def _inputs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        _reraised(lambda: parse_inputs(value))
        return value

    @field_validator("sizes")
    @classmethod
    def _sizes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        _reraised(lambda: parse_sizes(value))
        return value

    @field_validator("fixed")
    @classmethod
    def _fixed(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        _reraised(lambda: parse_fixed(value))
        return value

    def specs(self) -> tuple[InputSpec, ...]:
        """The inputs that were given; empty where none was."""
        if self.input_shape is not None:
            return (InputSpec(name=INPUT, shape=parse_shape(self.input_shape, "--input-shape")),)
        return parse_inputs(self.inputs)


class CalibrationOptions(BaseModel):
    """With precision int8: how the network is calibrated. The samples are those of `SourceOptions`, or the run's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = "entropy"
    placement: str = "default"
    weights: str = "qdq"
    samples: int = 512
    """Maximum number of calibration samples."""
    held_out: int = 10_000
    """Maximum number of held-out evaluation samples."""
    exclude: tuple[str, ...] = ()
    """Globs of layers that stay in floating point."""
    max_drop: float | None = None
    """Keep the worst layers in floating point until the score drops by at most so many points."""
    preprocess: str | None = None

    @model_validator(mode="after")
    def _allowed(self) -> CalibrationOptions:
        try:
            Settings(data="", **self.model_dump())
        except ConfigError as error:
            raise PydanticCustomError("calibration", "{text}", {"text": str(error)}) from None
        return self


class ExportConfig(BaseModel):
    """How a network is exported."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: PrecisionName | None = None
    """None: fp32 for torch networks, as found for ONNX."""
    batch: BatchRange | None = None
    """None: 1:8:64 where the batch is free."""
    builder: BuilderName = "auto"
    sm: str | None = None
    tolerance: float | None = None
    io_dtype: IoDtypeName = "fp32"
    source: SourceOptions = SourceOptions()
    calibration: CalibrationOptions = CalibrationOptions()
    engine: EngineSettings = EngineSettings()

    @field_validator("precision", "builder", "io_dtype", mode="before")
    @classmethod
    def _known(cls, value: Any, info: Any) -> Any:
        choices = get_args(_CHOICES[info.field_name])
        if value not in choices and not (value is None and info.field_name == "precision"):
            raise PydanticCustomError("choice", "{text}", {"text": f"choose from {', '.join(choices)}"})
        return value

    @field_validator("batch", mode="before")
    @classmethod
    def _range(cls, value: Any) -> Any:
        if value is None or isinstance(value, BatchRange):
            return value
        try:
            smallest, optimal, largest = parse_batch_range(str(value))
        except ConfigError as error:
            raise PydanticCustomError("batch", "{text}", {"text": error.what}) from None
        return BatchRange(min=smallest, opt=optimal, max=largest)

    @field_validator("sm")
    @classmethod
    def _capability(cls, value: str | None) -> str | None:
        if value is not None and not _SM.fullmatch(value):
            raise PydanticCustomError("sm", "write the compute capability without its dot, such as 80 for an A100")
        return value

    @field_validator("tolerance")
    @classmethod
    def _positive(cls, value: float | None) -> float | None:
        if value is not None and not (math.isfinite(value) and value > 0):
            raise PydanticCustomError("tolerance", "must be a number above 0")
        return value


def _reraised(work: Callable[[], object]) -> None:
    """Give pydantic a mistake in its own form."""
    try:
        work()
    except ConfigError as error:
        raise PydanticCustomError("input", "{text}", {"text": f"{error.what}; {error.hint}"}) from None


def checked_config(output: Path, *, force: bool, **options: Any) -> ExportConfig:
    """Check the options and the output folder; all mistakes are reported at once.

    Raises:
        ConfigError: Something is wrong.
    """
    mistakes = []
    config = None
    try:
        config = ExportConfig.model_validate(options)
    except ValidationError as error:
        mistakes += [_mistake(item) for item in error.errors()]
    if config is not None and config.source.input_shape and config.source.inputs:
        mistakes.append("--input-shape and --input: give one of them")
    if config is not None and config.precision != "int8":
        given = config.calibration.model_dump(exclude_defaults=True)
        mistakes += [f"{_CALIBRATION_FLAGS.get(name, _flag(name))} is for --precision int8" for name in given]
    try:
        check_output(output, force=force)
    except ConfigError as error:
        mistakes.append(str(error))
    if config is None or mistakes:
        raise ConfigError("; ".join(mistakes))
    return config


def _mistake(item: Any) -> str:
    if item["type"] == "calibration":
        return str(item["msg"])
    return f"{_flag(str(item['loc'][-1]))} {item['input']}: {item['msg']}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
