"""The stream that every result is written over: one `LayerWeight` at a time, whatever file it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from nm2trt.reasons import Reason, words_of

Op = Literal["conv", "conv-transpose", "linear", "gemm", "matmul", "embedding", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeight:
    """One weight tensor with the operator that consumes it.

    `weight()` loads the values; nothing is held between calls, so a stream costs one tensor of memory.
    """

    name: str
    """Tensor name in the file."""
    op: Op
    shape: tuple[int, ...]
    dtype: str
    """As stored: "float32", "float16", "bfloat16", "int8", ..."""
    reduction_axis: int | None
    """Axis that the hardware groups along: input channels (conv), K (GEMM). None when there is none."""
    weight: Callable[[], NDArray[Any]]
    """Values in `shape`. Of a quantized tensor: stored value minus zero point, so that 0 means 0.0."""
    load_range: Callable[[int, int], NDArray[Any]] | None = None
    """Values from a start to before a stop, in memory order and flat, so that a large tensor need never be whole in
    memory; None where only `weight` works."""
    groups: int = 1
    reason: Reason | None = None
    """Why this tensor can never be pruned (bias, norm, embedding, depthwise), or is not read; None otherwise."""
    not_checked: bool = False
    """Nothing is said about it, though an operator may multiply by it: an operator that is not read, or a checkpoint's
    tensor that is not known to be a weight. Where `reduction_axis` is set, it holds if the user names the layer."""
    packed: str = ""
    """Format in which the file holds the weight packed, so that it cannot be written; empty for plain values."""
    zero_point: bool = False
    """Quantized with a zero point that is not 0, so that stored zeros are not zeros."""
    reading: Reason | None = None
    """What the reader did to the stored values (applied a mask); None otherwise."""
    node: str = ""
    """Operator's name in a graph; empty for checkpoints."""
    graph_dtype: str = ""
    """Type of the weights where the operator reads them in a strongly typed graph, "int8" behind Q/DQ.
    Empty for checkpoints: the type in the engine is chosen at export."""

    @property
    def why_not(self) -> str:
        """`reason` in words; empty where there is none."""
        return words_of(self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSource:
    """A file opened for checking: its layers, and what it says about itself."""

    path: Path
    """The file itself, also where a folder was asked for."""
    kind: Literal["checkpoint", "onnx"]
    layers: Callable[[], Iterator[LayerWeight]]
    """A fresh stream at every call."""
    patterns: Mapping[str, str] | None = None
    """Tensor name to "N:M", from nm2trt's own metadata; None where the file says nothing."""
    method: str | None = None
    """Training method, from nm2trt's own metadata."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Part of a trainer's checkpoint that is no network -> tensors in it, which are no layers."""
