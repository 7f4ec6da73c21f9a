"""What `nm2trt profile` is asked to do; every mistake is reported at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from nm2trt.errors import ConfigError

Backend = Literal["auto", "onnxruntime", "tensorrt"]

_MAX_BATCH = 65536


class ProfileConfig(BaseModel):
    """Options of one measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Backend = "auto"
    batches: tuple[int, ...] = (1, 8, 32)
    """Batch sizes, measured one after another."""
    duration_s: float = Field(default=6.0, gt=0, le=3600, allow_inf_nan=False)
    """Seconds of measuring per batch size."""
    seed: int = Field(default=0, ge=0, lt=2**32)

    @field_validator("batches", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        """Take `1,8,32` apart and name every entry that is no batch size."""
        if not isinstance(value, str):
            return value
        entries = [entry.strip() for entry in value.split(",")]
        wrong = [
            repr(entry)
            for entry in entries
            if not (entry.isascii() and entry.isdigit() and 0 < int(entry[:9]) <= _MAX_BATCH and len(entry) <= 9)
        ]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: each must be a whole number from 1 to {_MAX_BATCH}")
        return tuple(dict.fromkeys(int(entry) for entry in entries))


_OPTION = {"batches": "--batch", "duration_s": "--duration"}


def profile_config(**options: Any) -> ProfileConfig:
    """Validate options.

    Raises:
        ConfigError: Names every wrong option with its value.
    """
    try:
        return ProfileConfig(**options)
    except ValidationError as error:
        found = [
            f"{_OPTION.get(str(one['loc'][0]), '--' + str(one['loc'][0]))}: "
            f"{one['msg'].removeprefix('Value error, ')}"
            + ("" if one["type"] == "value_error" else f" (got {one['input']!r})")
            for one in error.errors()
        ]
        raise ConfigError("; ".join(found)) from None
