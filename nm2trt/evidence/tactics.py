"""What the name of a kernel tells. It is the only field of the engine inspector that shows which kernel runs."""

from __future__ import annotations

import re
from typing import Literal

Verdict = Literal["sparse", "dense", "unknown"]

# Seen: sm80_xmma_fprop_avdt_sparse_int8int8_..., sm80_xmma_fprop_sparse_conv_..._sptensor..., sm80_xmma_sparse_gemm_...
# and the same of sm90. The word must stand alone: a name that is made of a layer's own name may hold it, too.
_SPARSE = re.compile(r"(?:^|_)sparse(?:_|$)|sptensor|sp_?mma|sp_?gemm", re.IGNORECASE)
_MATRIX_KERNEL = re.compile(
    r"mma|gemm|fprop|conv|cutlass|cask|cudnn|^sm\d+|^ampere|^turing|^hopper|^volta", re.IGNORECASE
)
_SAYS_NOTHING = re.compile(
    # Compiled from the graph, and named after the layers in it.
    r"__myl"
    # TensorRT-RTX chooses the kernel later, on the GPU.
    r"|__myelin_CASK_STUB",
)


def tactic_verdict(name: str | None) -> Verdict:
    """Tell from `TacticName` whether a kernel uses sparse tensor cores.

    `HasSparseWeights` is no such proof: it says that the weights have the pattern, and TensorRT may still run a dense
    kernel (NVIDIA/TensorRT issue 4694).

    Args:
        name: The inspector's `TacticName`; None or "" where there is none.

    Returns:
        "unknown" where there is no name, or one that does not name a matrix kernel.
    """
    if not name or _SAYS_NOTHING.match(name):
        return "unknown"
    if not _MATRIX_KERNEL.search(name):
        return "unknown"
    return "sparse" if _SPARSE.search(name) else "dense"
