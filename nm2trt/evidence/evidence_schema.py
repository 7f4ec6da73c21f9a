"""What `nm2trt inspect --json` prints."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from typing_extensions import Self

from nm2trt.artifacts import Document, LayerEvidence
from nm2trt.evidence.layers import EngineEvidence

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class InspectTotals(BaseModel):
    """Counts over the layers that may multiply by weights; the others can neither be sparse nor dense."""

    model_config = _FROZEN

    layers: int
    """All of the engine."""
    with_weights: int
    weights_unknown: int = 0
    """Nothing shows whether they multiply by weights; in none of the counts below."""
    eligible: int
    eligible_unknown: int = 0
    """Nothing shows whether they are eligible."""
    sparse: int
    """Run a sparse kernel."""
    dense: int
    hidden: int
    """Nothing shows their kernel."""


class InspectedEngine(BaseModel):
    """One engine."""

    model_config = _FROZEN

    name: str
    """Variant, with the number of the repetition if there are several; or the name of the file."""
    builder: str
    """With its version and SM; empty where the files do not say."""
    flags: tuple[str, ...]
    totals: InspectTotals
    log_eligible: int | None
    """As the builder's own log counts; None where the log says nothing."""
    log_chosen: int | None
    log_is_exact: bool = True
    """The log lists the layers; else its counts are lower bounds."""
    layers: tuple[LayerEvidence, ...]
    notes: tuple[str, ...]
    error: str | None = None
    """Why there is no engine."""

    @property
    def sparse_at_least(self) -> int:
        """Layers seen to run a sparse kernel; where no layer is named, as many as the log counts."""
        counted = self.log_chosen or 0
        return self.totals.sparse if self.layers else max(self.totals.sparse, counted)

    @classmethod
    def of(cls, evidence: EngineEvidence, *, name: str, builder: str = "", flags: tuple[str, ...] = ()) -> Self:
        """Count an engine's layers."""
        weighted = [layer for layer in evidence.layers if layer.has_weights]
        return cls(
            name=name,
            builder=builder,
            flags=flags,
            totals=InspectTotals(
                layers=len(evidence.layers),
                with_weights=len(weighted),
                weights_unknown=sum(layer.weighted is None for layer in evidence.layers),
                eligible=sum(layer.eligible is True for layer in weighted),
                eligible_unknown=sum(layer.eligible is None for layer in weighted),
                sparse=sum(layer.chosen is True for layer in weighted),
                dense=sum(layer.chosen is False for layer in weighted),
                hidden=sum(layer.chosen is None for layer in weighted),
            ),
            log_eligible=evidence.log_eligible,
            log_chosen=evidence.log_chosen,
            log_is_exact=evidence.log_is_exact,
            layers=evidence.layers,
            notes=evidence.notes,
        )


class InspectDocument(Document):
    """The layers of one or several engines, with what shows of each."""

    SCHEMA: ClassVar[str] = "nm2trt.inspect/1"

    kind: Literal["build", "files"]
    source: str
    engines: tuple[InspectedEngine, ...]
