"""A ratio of two times with its interval; an end may be unbounded."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _bound(value: Any) -> Any:
    return math.inf if value is None else value


Bound = Annotated[
    float,
    BeforeValidator(_bound),
    PlainSerializer(_finite, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]}),
]
"""A number that may be infinite; JSON has no infinity, so `null` stands for it there."""


class RatioRecord(BaseModel):
    """Ratio of two variants' latencies: median over rounds of the paired ratio, with its bootstrap interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: Bound
    """null: unbounded."""
