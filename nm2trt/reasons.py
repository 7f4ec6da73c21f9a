"""Why something is as it is, as data: a code to decide by, and words made from it only when something is printed.

No code may branch on the words. Documents keep the words for their readers
and the code beside them for programs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

NotWeightCode = Literal[
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
    "depthwise-groups",
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
    "vector-operand",
    "no-axis",
    "indivisible",
]
"""Why a tensor is not counted as a layer's weight."""
ReadingCode = Literal["masked", "before-parametrization", "unpacked", "mask-alone", "mask-bits"]
"""What a reader did to the stored values."""
EligibilityCode = Literal[
    "conv-transpose",
    "grouped",
    "nothing-to-prune",
    "left-operand",
    "batched-matmul",
    "channels",
    "zero-point",
    "not-legal",
    "mask-only",
    "float32",
    "bfloat16",
    "engine-dtype",
    "not-checked",
    "tf32",
    "no-sparse-cores",
    "excluded",
    "computed",
    "no-weights",
]
"""Why TensorRT considers no sparse kernel for a layer."""
GainCode = Literal[
    "float-output", "few-rows", "narrow", "launch-bound", "memory-bound", "on-chip-bound", "compute-bound"
]
"""Why a sparse kernel is not expected to be faster."""
TorchKernelCode = Literal[
    "no-torch-kernel",
    "kernel-size",
    "grouped-convolution",
    "padded-convolution",
    "attention-call",
    "never-called",
    "no-matrix",
    "not-on-gpu",
    "kernel-dtype",
    "cusparselt-multiples",
    "cutlass-multiples",
    "not-contiguous",
    "dense",
    "broken-pattern",
]
"""Why none of torch's 2:4 kernels takes a weight."""
OtherCode = Literal["on-purpose"]
ReasonCode = Literal[NotWeightCode, ReadingCode, EligibilityCode, GainCode, TorchKernelCode, OtherCode]

_NEEDS = "TensorRT's sparse kernels need FP16 or INT8"
_WORDS: dict[ReasonCode, tuple[str, str]] = {
    "scalar": ("scalar", ""),
    "vector": ("1-D", "bias or norm"),
    "empty": ("empty", "a dimension is 0"),
    "dtype": ("{0}", "not a plain weight (an index, a mask, or packed values)"),
    "embedding": ("embedding", "rows are looked up, not multiplied"),
    "norm": ("norm", "its {0} has the shape of its bias"),
    "table": ("not a weight by its name ({0})", ""),
    "mask": ("mask", "applied to the weight beside it"),
    "optimizer": ("optimizer state", "{0}"),
    "companion": ("quantization parameter", "{0}"),
    "adapter": ("low-rank adapter", "{0} is added to another weight, merge it first"),
    "magnitude-vector": ("weight norm's magnitudes", "one factor for each output"),
    "depthwise": ("one input channel", "depthwise, or the stem of a gray-scale network"),
    "depthwise-groups": ("depthwise", "one input channel per group, nothing to prune along"),
    "unknown-name": ("not known to be a layer's weight", "name it with --layer '{0}=N:M'"),
    "unknown-rank": ("{0}-D", "no known operator"),
    "stacked": ("stacked weights", "which axis is summed over is not known; verify the ONNX"),
    "orientation": (
        "its bias of {0} fits neither axis, so the axis that is summed over is not known; verify the ONNX",
        "",
    ),
    "conv1d": ("Conv1D [in, out] or Linear [out, in]", "only a config.json beside it tells; verify the ONNX"),
    "packed": ("packed values", "{0}; unpack them, or verify the network before it was quantized"),
    "recurrent": ("{0}", "weights of a recurrent operator are not read"),
    "einsum": ("Einsum", "equation {0} is not read; export it as MatMul"),
    "runtime-operator": (
        "{0}",
        "an operator of ONNX Runtime's optimizer; verify the file before it was optimized",
    ),
    "quantized-operator": (
        "{0}",
        "an operator of quantized integers; verify the QDQ form (quant_format=QDQ) or the float network",
    ),
    "packed-operator": ("{0}", "values are packed; verify the network before it was packed"),
    "attention-operator": ("{0}", "a fused attention operator; verify the network before attention was fused"),
    "deformable": ("{0}", "deformable convolutions are not read"),
    "custom-operator": ("{0}", "what this operator multiplies is not known"),
    "unfolded": (
        "computed from constants by {0}; fold them first (polygraphy surgeon sanitize --fold-constants)",
        "",
    ),
    "modulated": ("{0} changes it before the operator reads it", ""),
    "loop-input": ("passed into the body of a {0}", ""),
    "sparse-initializer": ("sparse initializer", "store it dense"),
    "constant": ("constant", ""),
    "vector-operand": ("1-D", "a vector"),
    "no-axis": ("no reduction axis", ""),
    "indivisible": ("{0}", "no multiple of {1}"),
    "masked": ("checked with the mask that {0} keeps in {1}; the stored weights alone may be dense", ""),
    "before-parametrization": (
        (
            "stored as it is before a torch parametrization, whose mask is not in the file; save it after "
            "torch.nn.utils.parametrize.remove_parametrizations or the sparsifier's squash_mask"
        ),
        "",
    ),
    "unpacked": ("unpacked from its {0}", ""),
    "mask-alone": ("a mask without its weight", ""),
    "mask-bits": ("a mask without its weight, unpacked from bits, in rows of 8", ""),
    "conv-transpose": ("ConvTranspose", "TensorRT has no sparse kernels for it"),
    "grouped": ("{0} groups", "TensorRT does not consider sparse kernels for grouped convolutions"),
    "nothing-to-prune": ("nothing to prune along", ""),
    "left-operand": ("weight on the left of MatMul", "unverified"),
    "batched-matmul": ("batched MatMul", "unverified"),
    "channels": ("{0} input channel(s)", "no multiple of {1}"),
    "zero-point": ("zero point is not 0", "stored zeros are not zeros"),
    "not-legal": ("not 2:4-legal", "{0} of {1} groups hold more than 2 of 4"),
    "mask-only": ("mask", "the weights are in another file"),
    "float32": ("{0}", f"{_NEEDS}; export --precision fp16"),
    "bfloat16": ("bfloat16", "unverified; NVIDIA documents sparse kernels for FP16 and INT8"),
    "engine-dtype": ("{0}", _NEEDS),
    "not-checked": ("not checked", "{0}"),
    "tf32": ("FP32 (TF32)", _NEEDS),
    "no-sparse-cores": ("{0} has no sparse Tensor Cores for {1}", ""),
    "excluded": ("kept dense by --exclude", ""),
    "computed": ("its weights are computed in the graph", "nothing to count"),
    "no-weights": ("no weights", ""),
    "float-output": ("output is not INT8", "no QuantizeLinear behind it"),
    "few-rows": (
        "few rows",
        "{0}, so it waits for its weights; engines at batch 1 came out 0.84x to 1.2x",
    ),
    "narrow": ("narrow", "{0} output channels, fewer than a sparse kernel's tile"),
    "launch-bound": ("launch-bound", "the kernel is shorter than its launch"),
    "memory-bound": ("memory-bound", "sparse weights hardly relieve it"),
    "on-chip-bound": ("bound on chip", "activations come to the Tensor Cores dense"),
    "compute-bound": ("small gain", "few multiply-adds for each activation"),
    "no-torch-kernel": ("{0}", "torch has no 2:4 kernel for it"),
    "kernel-size": ("{0} convolution", "torch has 2:4 kernels for matrix products only, so for 1x1"),
    "grouped-convolution": ("grouped convolution ({0} groups)", "no matrix product"),
    "padded-convolution": ("1x1 convolution with padding {0}", "no plain matrix product"),
    "attention-call": ("called with {0}", "only self-attention without masks and weights is rewritten"),
    "never-called": ("did not run for these inputs", ""),
    "no-matrix": ("weight {0} is no matrix", ""),
    "not-on-gpu": ("the weight is on the {0}, not on a GPU", ""),
    "kernel-dtype": ("{0} has no 2:4 kernel for {1}", ""),
    "cusparselt-multiples": ("weight {0}", "cusparselt needs multiples of {1}"),
    "cutlass-multiples": ("weight {0}", "cutlass needs multiples of {1}"),
    "not-contiguous": ("the weight is not contiguous (strides {0})", ""),
    "dense": ("dense", "{0} of its weights are zero; {1} groups of four have more than two non-zeros"),
    "broken-pattern": ("not 2:4", "{0} of {1} groups have more than two non-zeros"),
    "on-purpose": ("left dense on purpose", ""),
}
"""Code -> what sums it up, and what explains it; {0} is the detail, {1} the second detail."""
assert set(_WORDS) == set(get_args(ReasonCode))


@dataclass(frozen=True, slots=True)
class Reason:
    """A code and what it is about."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    code: ReasonCode
    detail: str = ""
    """What the words name: an operator, a name, a type, a count."""
    also: str = ""
    """A second thing that they name."""

    def words(self) -> str:
        """As a clause: what sums it up and, behind a colon, what explains it."""
        summary, explanation = _WORDS[self.code]
        return self._filled(f"{summary}: {explanation}" if explanation else summary)

    def summary(self) -> str:
        """The few words that sum it up, for a table."""
        return self._filled(_WORDS[self.code][0])

    @property
    def explained(self) -> bool:
        """Whether the words say more than the summary."""
        return bool(_WORDS[self.code][1])

    def _filled(self, template: str) -> str:
        return template.replace("(s)", "" if self.detail == "1" else "s").format(self.detail, self.also)


def words_of(reason: Reason | None) -> str:
    """The reason's words; empty where there is none."""
    return reason.words() if reason is not None else ""
