"""What is measured: dtypes, sizes of the products, and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nm2trt.errors import ConfigError

DTypeName = Literal["fp16", "bf16", "int8"]
DTYPES: tuple[DTypeName, ...] = ("fp16", "bf16", "int8")

WEIGHTS: tuple[tuple[int, int, str], ...] = (
    (768, 768, "transformer base: attention output"),
    (2304, 768, "transformer base: attention input"),
    (3072, 768, "transformer base: feed-forward in"),
    (768, 3072, "transformer base: feed-forward out"),
    (4096, 1024, "transformer large: feed-forward in"),
    (4096, 4096, "language model: attention"),
    (11008, 4096, "language model: feed-forward"),
    (256, 64, "ResNet-50 stage 1, 1x1"),
    (512, 128, "ResNet-50 stage 2, 1x1"),
    (256, 1024, "ResNet-50 stage 3, 1x1"),
    (2048, 512, "ResNet-50 stage 4, 1x1"),
)
"""Output features, input features, where they are found."""

ROWS = (64, 512, 2048, 8192, 32768)
"""Tokens, or batch times pixels."""


@dataclass(frozen=True, slots=True)
class Point:
    """One product: y_MN = x_MK w_NK^T."""

    m: int
    n: int
    k: int
    dtype: DTypeName
    origin: str

    @property
    def label(self) -> str:
        """For messages: dtype and sizes."""
        return f"{self.dtype} {self.m}x{self.n}x{self.k}"

    @property
    def flops(self) -> int:
        """Two for each multiply-add of the dense product."""
        return 2 * self.m * self.n * self.k


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkConfig:
    """Options of one run.

    Attributes:
        duration_s: Seconds for all products together; what does not fit is left out and listed.
        dtypes: Of the operands.
        search: Also time the algorithm that cuSPARSELt's search finds.
        seed: Of operands, order and statistics.

    Raises:
        ConfigError: An unknown dtype or a duration that is not positive.
    """

    duration_s: float = 240.0
    dtypes: tuple[DTypeName, ...] = DTYPES
    search: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.dtypes if name not in DTYPES]
        if unknown or not self.dtypes:
            raise ConfigError(
                f"unknown dtype {', '.join(unknown)}" if unknown else "no dtype",
                where="--dtype",
                hint=f"choose from {', '.join(DTYPES)}",
            )
        if not 0 < self.duration_s <= 3600:
            raise ConfigError(f"{self.duration_s:g} seconds", where="--duration", hint="use 1 to 3600")

    def points(self) -> Iterator[Point]:
        """Give all products in an order drawn from the seed, so that a cut run has left out no kind."""
        everything = [Point(m, n, k, dtype, origin) for dtype in self.dtypes for n, k, origin in WEIGHTS for m in ROWS]
        order = np.random.default_rng(self.seed).permutation(len(everything))
        for index in order:
            yield everything[index]
