"""Why a tensor is not counted as a layer's weight: a code to decide by, and words made from it only when printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

ReasonCode = Literal[
    "scalar",
    "vector",
    "empty",
    "dtype",
    "embedding",
    "norm",
    "table",
    "mask",
    "optimizer",
    "companion",
    "adapter",
    "magnitude-vector",
    "depthwise",
    "unknown-name",
    "unknown-rank",
    "stacked",
    "orientation",
    "conv1d",
    "packed",
    "recurrent",
    "einsum",
    "runtime-operator",
    "quantized-operator",
    "packed-operator",
    "attention-operator",
    "deformable",
    "custom-operator",
    "unfolded",
    "modulated",
    "loop-input",
    "sparse-initializer",
    "constant",
]

_WORDS: dict[str, str] = {
    "scalar": "scalar",
    "vector": "1-D: bias or norm",
    "empty": "empty: a dimension is 0",
    "dtype": "{}: not a plain weight (an index, a mask, or packed values)",
    "embedding": "embedding: rows are looked up, not multiplied",
    "norm": "norm: its {} has the shape of its bias",
    "table": "not a weight by its name ({})",
    "mask": "mask: applied to the weight beside it",
    "optimizer": "optimizer state: {}",
    "companion": "quantization parameter: {}",
    "adapter": "low-rank adapter: {} is added to another weight, merge it first",
    "magnitude-vector": "weight norm's magnitudes: one factor for each output",
    "depthwise": "one input channel: depthwise, or the stem of a gray-scale network",
    "unknown-name": "not known to be a layer's weight: name it with --layer '{}=N:M'",
    "unknown-rank": "{}-D: no known operator",
    "stacked": "stacked weights: which axis is summed over is not known; verify the ONNX",
    "orientation": "its bias of {} fits neither axis, so the axis that is summed over is not known; verify the ONNX",
    "conv1d": "Conv1D [in, out] or Linear [out, in]: only a config.json beside it tells; verify the ONNX",
    "packed": "packed values: {}; unpack them, or verify the network before it was quantized",
    "recurrent": "{}: weights of a recurrent operator are not read",
    "einsum": "Einsum: equation {} is not read; export it as MatMul",
    "runtime-operator": "{}: an operator of ONNX Runtime's optimizer; verify the file before it was optimized",
    "quantized-operator": "{}: an operator of quantized integers; verify the QDQ form (quant_format=QDQ) "
    "or the float network",
    "packed-operator": "{}: values are packed; verify the network before it was packed",
    "attention-operator": "{}: a fused attention operator; verify the network before attention was fused",
    "deformable": "{}: deformable convolutions are not read",
    "custom-operator": "{}: what this operator multiplies is not known",
    "unfolded": "computed from constants by {}; fold them first (polygraphy surgeon sanitize --fold-constants)",
    "modulated": "{} changes it before the operator reads it",
    "loop-input": "passed into the body of a {}",
    "sparse-initializer": "sparse initializer: store it dense",
    "constant": "constant",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """A code and what it is about."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    code: ReasonCode
    detail: str = ""
    """What the words name: an operator, a name, a type."""

    def words(self) -> str:
        """As a clause; what stands before the first colon sums it up."""
        return _WORDS[self.code].format(self.detail)
