"""What `nm2trt profile` is asked to do; every mistake is reported at once."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from nm2trt.artifacts.report import ExecutionMode
from nm2trt.errors import ConfigError
from nm2trt.selectors import parse_named_shape

Backend = Literal["auto", "onnxruntime", "tensorrt", "tensorrt-rtx", "torch-sparse"]
Provider = Literal["auto", "cpu", "cuda", "tensorrt"]

_MAX_BATCH = 65536


class ProfileConfig(BaseModel):
    """Options of one measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Backend = "auto"
    modes: tuple[ExecutionMode, ...] = ("eager", "compiled", "cuda-graph")
    """How PyTorch executes the network, on the torch-sparse backend; measured one after another."""
    precision: Literal["fp16", "bf16"] = "fp16"
    """Dtype of the network on the torch-sparse backend."""
    provider: Provider = "auto"
    """Execution provider of ONNX Runtime."""
    batches: tuple[int, ...] = (1, 8, 32)
    """Batch sizes, measured one after another."""
    duration_s: float = Field(default=6.0, gt=0, le=3600, allow_inf_nan=False)
    """Seconds of measuring per batch size."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    rebuilds: int = Field(default=1, ge=1, le=100)
    """How many builds of each variant are timed."""
    shapes: dict[str, tuple[int, ...]] = {}
    """Whole shapes of inputs with dynamic dimensions; the first number gives way to the batch."""
    layers: bool = True
    """Time every layer in a run of its own."""
    streams: int = Field(default=0, ge=0, le=1024)
    """Concurrent streams of the measurement under load; 0 leaves it out."""
    rates: tuple[float, ...] = ()
    """Requests a second; none: shares of the capacity that is measured first."""
    trust: bool = False
    """Load plans that the manifest does not vouch for; the user made them."""

    @field_validator("shapes", mode="before")
    @classmethod
    def _parse_shapes(cls, value: Any) -> Any:
        """Take `("x=1x3x224x224", ...)` apart."""
        if isinstance(value, dict):
            return value
        try:
            return dict(parse_named_shape(str(entry)) for entry in value)
        except ConfigError as error:
            raise ValueError(f"{error.what}; {error.hint}") from None

    @field_validator("rates", mode="before")
    @classmethod
    def _parse_rates(cls, value: Any) -> Any:
        """Take `50,100` apart."""
        if not isinstance(value, str):
            return value
        entries = [entry.strip() for entry in value.split(",") if entry.strip()]
        wrong = [repr(entry) for entry in entries if not _is_rate(entry)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: each must be a number of requests a second above 0")
        return tuple(dict.fromkeys(float(entry) for entry in entries))

    @field_validator("modes", mode="before")
    @classmethod
    def _parse_modes(cls, value: Any) -> Any:
        """Take `eager,compiled` apart."""
        if not isinstance(value, str):
            return value
        entries = [entry.strip() for entry in value.split(",") if entry.strip()]
        wrong = [repr(entry) for entry in entries if entry not in get_args(ExecutionMode)]
        if wrong or not entries:
            known = ", ".join(get_args(ExecutionMode))
            raise ValueError(f"{', '.join(wrong) or 'none given'}: choose from {known}")
        return tuple(dict.fromkeys(entries))

    @field_validator("batches", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        """Take `1,8,32` apart and name every entry that is no batch size."""
        if not isinstance(value, str):
            return value
        entries = [entry.strip() for entry in value.split(",")]
        wrong = [repr(entry) for entry in entries if not _is_size(entry) or int(entry) > _MAX_BATCH]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: each must be a whole number from 1 to {_MAX_BATCH}")
        return tuple(dict.fromkeys(int(entry) for entry in entries))


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0


def _is_rate(text: str) -> bool:
    try:
        return 0 < float(text) < 1e9
    except ValueError:
        return False


_OPTION = {"modes": "--mode", "batches": "--batch", "duration_s": "--duration", "shapes": "--shape", "rates": "--rate"}


def profile_config(**options: Any) -> ProfileConfig:
    """Validate options.

    Raises:
        ConfigError: Names every wrong option with its value.
    """
    try:
        config = ProfileConfig(**options)
    except ValidationError as error:
        found = [
            f"{_OPTION.get(str(one['loc'][0]), '--' + str(one['loc'][0]))}: "
            f"{one['msg'].removeprefix('Value error, ')}"
            + ("" if one["type"] == "value_error" else f" (got {one['input']!r})")
            for one in error.errors()
        ]
        raise ConfigError("; ".join(found)) from None
    if config.rates and not config.streams:
        raise ConfigError("no effect without --streams", where="--rate", hint="add --streams N, or drop it")
    return config
