"""What the name of a kernel tells. It is the only field of the engine inspector that shows which kernel runs."""

from __future__ import annotations

import re
from typing import Literal

Verdict = Literal["sparse", "dense", "unknown"]

# Seen: sm80_xmma_fprop_avdt_sparse_int8int8_..., sm80_xmma_fprop_sparse_conv_..._sptensor..., sm80_xmma_sparse_gemm_...
# and the same of sm90. Older kernels of the Ampere family put "sp" behind the instruction,
# ampere_..._s16832gemm_sp_...;
# CUTLASS and cuSPARSELt write spgemm and spmma.
_SPARSE = re.compile(
    r"(?:^|_)sparse(?:_|$)|sptensor|(?<![a-z])sp_?(?:mma|gemm|conv)|cusparselt|(?:gemm|conv|mma|cudnn)_sp(?:_|$)"
    r"|^(?:ampere|ada|hopper|blackwell|sm[89]\d|sm1[0-9]\d)_(?:\w*_)?sp_|sparse(?:gemm|mma|tensorop)|mmasparse",
    re.IGNORECASE,
)
_FAMILY = re.compile(
    r"^(?:void )?(?:sm\d+_|maxwell_|pascal_|volta_|turing_|ampere_|ada_|hopper_|blackwell_|trt_|cutlass|cudnn"
    r"|xmma_|cask_|nvjet_|cusparselt|[his]\d{3,}|generic_)",
    re.IGNORECASE,
)
"""Names that a library gave its kernels. Others are made of a layer's own name, which may hold "sparse", too."""
_MATRIX_KERNEL = re.compile(r"mma|gemm|fprop|dgrad|conv|cutlass|cudnn|tensorop|cusparselt|nvjet", re.IGNORECASE)
_OTHER_KERNEL = re.compile(r"pool|softmax|reduce|eltwise|pointwise|transpose|reformat|copy", re.IGNORECASE)


def tactic_verdict(name: str | None) -> Verdict:
    """Tell from `TacticName` whether a kernel uses sparse tensor cores.

    `HasSparseWeights` is no such proof: it says that the weights have the pattern, and TensorRT may still run a dense
    kernel (NVIDIA/TensorRT issue 4694).

    Args:
        name: The inspector's `TacticName`; None or "" where there is none.

    Returns:
        "unknown" where there is no name, or one that is not known to be a matrix kernel's: TensorRT-RTX's placeholder,
        kernels compiled from the graph, which are named after its layers.
    """
    if not name or not _FAMILY.match(name) or not _MATRIX_KERNEL.search(name):
        return "unknown"
    if _SPARSE.search(name):
        return "sparse"
    return "unknown" if _OTHER_KERNEL.search(name) else "dense"
