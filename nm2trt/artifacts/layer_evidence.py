"""What can be seen of one engine layer: was a sparse kernel possible, was one chosen, and which."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

NO_WEIGHTS = "has no weights that could be sparse"
"""`why` of a layer that multiplies by no weights."""


class LayerEvidence(BaseModel):
    """One layer of a built engine.

    `eligible` and `chosen` are None where nothing shows them. `chosen` rests on the name of the kernel (`TacticName`)
    or on the builder's own `(Sparsity)` log lines, never on `HasSparseWeights`, which tells of the weights alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The engine's own name of the layer."""
    type: str
    """The inspector's LayerType, or "" where only the log names the layer."""
    onnx_nodes: tuple[str, ...] = ()
    """Names of the ONNX nodes that were fused into it; empty where they cannot be told."""
    torch_names: tuple[str, ...] = ()
    """Weights of those nodes, as torch names them."""
    kernel: str | None = None
    """The kernel's name; None where the engine keeps it to itself."""
    eligible: bool | None = None
    """The weights have the 2:4 pattern and the builder may try sparse kernels."""
    chosen: bool | None = None
    """A sparse kernel runs."""
    weighted: bool | None = None
    """It multiplies by weights; None where nothing shows whether it does."""
    why: str = ""
    """What the two answers rest on, or why they cannot be given."""
    why_chosen: str = ""
    """The same of `chosen` alone; empty where that follows from `eligible`."""

    @property
    def has_weights(self) -> bool:
        """Whether it is known to multiply by weights; others are no part of any count."""
        return bool(self.torch_names or self.eligible) if self.weighted is None else self.weighted
