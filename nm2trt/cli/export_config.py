"""Options of `nm2trt export`, checked together before any work is done."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from nm2trt.artifacts import BatchRange
from nm2trt.artifacts.files import check_output
from nm2trt.engine.settings import EngineSettings
from nm2trt.errors import ConfigError

PrecisionName = Literal["fp32", "fp16", "bf16"]
BuilderName = Literal["auto", "tensorrt", "tensorrt-rtx", "none"]

_BATCH = re.compile(r"([0-9]{1,9})(?::([0-9]{1,9}):([0-9]{1,9}))?")
_SM = re.compile(r"[1-9][0-9]{1,2}")


class ExportConfig(BaseModel):
    """How a network is exported."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: PrecisionName
    batch: BatchRange
    builder: BuilderName
    sm: str | None
    tolerance: float | None
    engine: EngineSettings = EngineSettings()

    @field_validator("precision", "builder", mode="before")
    @classmethod
    def _known(cls, value: Any, info: Any) -> Any:
        choices = get_args(PrecisionName if info.field_name == "precision" else BuilderName)
        if value not in choices:
            raise PydanticCustomError("choice", "{text}", {"text": f"choose from {', '.join(choices)}"})
        return value

    @field_validator("batch", mode="before")
    @classmethod
    def _range(cls, value: Any) -> Any:
        if isinstance(value, BatchRange):
            return value
        match = _BATCH.fullmatch(str(value).strip())
        if match is None:
            raise PydanticCustomError("batch", "write MIN:OPT:MAX, such as 1:8:64, or one number")
        smallest = int(match[1])
        optimal, largest = (int(match[2]), int(match[3])) if match[2] else (smallest, smallest)
        if not 1 <= smallest <= optimal <= largest:
            raise PydanticCustomError("batch", "needs 1 <= MIN <= OPT <= MAX")
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
        mistakes += [
            f"--{str(item['loc'][-1]).replace('_', '-')} {item['input']}: {item['msg']}" for item in error.errors()
        ]
    try:
        check_output(output, force=force)
    except ConfigError as error:
        mistakes.append(str(error))
    if config is None or mistakes:
        raise ConfigError("; ".join(mistakes))
    return config
