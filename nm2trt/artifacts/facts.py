"""The four facts about a sparse engine. They are never mixed, and none follows from a flag."""

from __future__ import annotations

from enum import Enum

from pydantic import BaseModel, ConfigDict


class FactState(str, Enum):
    """What is known of a fact. `unknown` is an answer: it says why nothing could be observed."""

    PROVED = "proved"
    DISPROVED = "disproved"
    UNKNOWN = "unknown"


class Fact(BaseModel):
    """One fact with the observation that it rests on."""

    model_config = ConfigDict(frozen=True)

    state: FactState
    evidence: str


class Facts(BaseModel):
    """Legal pattern, eligible in TensorRT, sparse kernel chosen, faster: four different facts."""

    model_config = ConfigDict(frozen=True)

    legal: Fact
    """Every layer that is meant to be sparse holds its pattern, counted in the file itself."""
    eligible: Fact
    """Layers that TensorRT may consider for sparse kernels: 2:4-legal, ungrouped, C % 4 == 0, a fitting dtype."""
    chosen: Fact
    """A sparse kernel runs, by the tactic names or log of a real build."""
    faster: Fact
    """Measured: the sparse variant beats the dense variant beyond the noise."""

    def rows(self) -> list[tuple[str, str, str]]:
        """(fact, state, evidence), in their order."""
        return [
            (name, fact.state.value, fact.evidence)
            for name, fact in (
                ("legal", self.legal),
                ("eligible", self.eligible),
                ("chosen", self.chosen),
                ("faster", self.faster),
            )
        ]
