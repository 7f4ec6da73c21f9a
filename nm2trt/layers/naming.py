"""Guess the operator behind a checkpoint's tensor. A checkpoint holds names and shapes only.

Shapes follow torch: a linear weight is [out, in], a convolution [out, in / groups, kernel...]; both are reduced along
axis 1. What shapes cannot tell (grouped or transposed convolutions, weights stored [in, out]) an ONNX file can.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nm2trt.layers.stream import Op

_WEIGHT_WORDS = re.compile(r"^(weight|weights|kernel|w|original\d*)$|^weight[_.]|_weight$")
_EMBEDDING = re.compile(
    r"emb(ed)?(ding)?(s|_tokens)?$|embeddings?$|^(wte|wpe|shared|embed_tokens|tok_embeddings)$", re.I
)
_NOT_WEIGHT = re.compile(
    r"bias|embed|token|table|running_(mean|var)|num_batches|position_ids|scale|zero_point|mask|anchor|inv_freq", re.I
)
_FLOATS = ("float", "bfloat")
_JUDGED_INTEGERS = ("int8",)
_CONV_RANKS = (3, 4, 5)


@dataclass(frozen=True, slots=True)
class Guess:
    """Operator and reduction axis of a tensor, or the reason that it cannot be pruned."""

    op: Op
    reduction_axis: int | None
    why_not: str = ""


def guess(name: str, shape: tuple[int, ...], dtype: str) -> Guess:
    """Tell from a tensor's name, shape and stored type what reads it."""
    if reason := _never_a_weight(shape, dtype):
        return Guess("other", None, reason)
    parts = [part for part in re.split(r"[./]", name) if part]
    last = parts[-1] if parts else ""
    owner = next((part for part in reversed(parts) if not _is_wrapper(part)), "")
    if len(shape) == 2 and _EMBEDDING.search(owner):
        return Guess("embedding", None, "embedding: rows are looked up, not multiplied")
    if not _WEIGHT_WORDS.search(last) and _NOT_WEIGHT.search(last):
        return Guess("other", None, f"not a weight by its name ({last})")
    if len(shape) == 2:
        return Guess("linear", 1)
    if len(shape) in _CONV_RANKS:
        if shape[1] == 1 and shape[0] > 1:
            return Guess("conv", None, "one input channel: depthwise, or the stem of a grey-scale network")
        return Guess("conv", 1)
    return Guess("other", None, f"{len(shape)}-D: no known operator")


def _never_a_weight(shape: tuple[int, ...], dtype: str) -> str:
    if len(shape) < 2:
        return "scalar" if not shape else "1-D: bias or norm"
    if 0 in shape:
        return "empty: a dimension is 0"
    if not dtype.startswith(_FLOATS) and dtype not in _JUDGED_INTEGERS:
        return f"{dtype}: not a plain weight (an index, a mask, or packed values)"
    return ""


def _is_wrapper(part: str) -> bool:
    return bool(_WEIGHT_WORDS.search(part)) or part in {"parametrizations", "base_layer", "module"} or part.isdigit()
