"""How engines are built: what the user may set, checked before any work is done."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MOST_REBUILDS = 100


class EngineSettings(BaseModel):
    """Settings of every engine of one export; all variants share them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dense: Path | None = None
    """The same network with dense weights, as ONNX or as a build folder: the dense variant."""
    timing_cache: Path | None = None
    """File of kernel timings, read if it exists and written back; None keeps one in the build folder."""
    workspace: int | None = None
    """Most bytes that a kernel may use as scratch memory; written "2G", "512M" or as a number of MiB."""
    optimization_level: int | None = None
    """How long the builder searches, 0 to 5; None is the builder's own level, 3."""
    refittable: bool = False
    """Whether weights can be changed later. TensorRT-RTX cannot do it without a GPU."""
    ort: bool = False
    """Whether to write session options for ONNX Runtime's TensorRT provider, too."""
    rebuilds: int = 1
    """How often each variant is built: builds of one network differ, and so do their times."""

    @field_validator("workspace", mode="before")
    @classmethod
    def _bytes(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        text = value.strip().upper().removesuffix("IB").removesuffix("B")
        number, unit = (text[:-1], text[-1:]) if text[-1:] in _UNITS else (text, "M")
        if not (number.isascii() and number.isdigit() and 0 < int(number) < 1 << 30):
            raise PydanticCustomError("workspace", "write a size such as 512M or 2G")
        return int(number) * _UNITS[unit]

    @field_validator("timing_cache")
    @classmethod
    def _writable(cls, value: Path | None) -> Path | None:
        if value is not None and (value.is_dir() or not value.resolve().parent.is_dir()):
            raise PydanticCustomError("cache", "must be a file in a folder that exists")
        return value

    @field_validator("dense")
    @classmethod
    def _there(cls, value: Path | None) -> Path | None:
        if value is not None and not value.exists():
            raise PydanticCustomError("dense", "does not exist; name an ONNX file or a folder of `nm2trt export`")
        return value

    @field_validator("optimization_level")
    @classmethod
    def _level(cls, value: int | None) -> int | None:
        if value is not None and not 0 <= value <= 5:
            raise PydanticCustomError("level", "choose from 0 to 5")
        return value

    @field_validator("rebuilds")
    @classmethod
    def _count(cls, value: int) -> int:
        if not 1 <= value <= _MOST_REBUILDS:
            raise PydanticCustomError("rebuilds", "choose from 1 to {most}", {"most": _MOST_REBUILDS})
        return value
