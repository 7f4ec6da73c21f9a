"""What the user asks of a calibration, checked before any work is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nm2trt.calibration.insertion import STORAGES
from nm2trt.calibration.placement import PLACEMENTS, Rule
from nm2trt.calibration.ranges import Method
from nm2trt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user asked for.

    Raises:
        ConfigError: A value is not allowed, or options do not go together.
    """

    data: str | None = None
    cache: Path | None = None
    method: str = "entropy"
    placement: str = "default"
    weights: str = "qdq"
    samples: int = 512
    held_out: int = 10_000
    batch_size: int | None = None
    exclude: tuple[str, ...] = ()
    sensitivity: bool = False
    max_drop: float | None = None
    resymmetrize: bool = False
    preprocess: str | None = None
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        Method.parse(self.method)
        if self.placement not in PLACEMENTS:
            raise ConfigError(
                f"unknown placement {self.placement!r}", where="--placement", hint=f"choose {', '.join(PLACEMENTS)}"
            )
        if self.weights not in STORAGES:
            raise ConfigError(f"unknown storage {self.weights!r}", where="--weights", hint="choose qdq or int8")
        for option, value in (("--samples", self.samples), ("--held-out", self.held_out)):
            if value < 1:
                raise ConfigError(f"{value} is less than 1", where=option)
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"{self.batch_size} is less than 1", where="--batch-size")
        if self.data is None and self.cache is None:
            raise ConfigError(
                "there is nothing to take ranges from", hint="give --data, or --cache of TensorRT 8 to 10"
            )
        if self.data is None and (self.sensitivity or self.max_drop is not None):
            raise ConfigError("--sensitivity and --max-drop need samples", hint="give --data")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise ConfigError(f"{self.max_drop:g} is not between 0 and 100 points", where="--max-drop")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Of the placement."""
        return PLACEMENTS[self.placement]
