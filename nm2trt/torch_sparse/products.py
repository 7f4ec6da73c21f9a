"""One matrix product y_MN = x_MK w_NK^T, dense and by each 2:4 backend, as torch's operators run it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nm2trt.ort.compare_outputs import FILL_MAGNITUDE
from nm2trt.torch_sparse.backends import BackendName

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
Call = Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What cuSPARSELt's search found fastest."""

    alg_id: int = 0
    split_k: int = 1
    split_k_mode: int = -1


def draw_operands(
    m: int, n: int, k: int, dtype: torch.dtype, *, device: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw x_MK and a 2:4 w_NK; integers stay small enough that no sum overflows."""
    generator = torch.Generator(device).manual_seed(seed)
    if dtype == torch.int8:
        x_MK = torch.randint(-8, 8, (m, k), generator=generator, device=device, dtype=dtype)
        w_NK = torch.randint(-8, 8, (n, k), generator=generator, device=device, dtype=dtype)
    else:
        x_MK = torch.randn(m, k, generator=generator, device=device).to(dtype)
        w_NK = torch.randn(n, k, generator=generator, device=device).to(dtype)
    places = torch.rand(n, k // 4, 4, generator=generator, device=device).argsort(dim=-1)
    return x_MK, w_NK * (places < 2).reshape(n, k)


def multiply_dense(x_MK: torch.Tensor, w_NK: torch.Tensor) -> torch.Tensor:
    """Multiply by cuBLAS; int8 gives int32."""
    if x_MK.dtype == torch.int8:
        return torch._int_mm(x_MK, w_NK.t())
    return torch.mm(x_MK, w_NK.t())


def sparse_product(
    x_MK: torch.Tensor, w_NK: torch.Tensor, backend: BackendName, *, algorithm: Algorithm | None = None
) -> Call:
    """Pack the weight once and return the call that multiplies by it; y_MN lies column by column, as torch leaves it.

    Args:
        x_MK: Activations, row by row.
        w_NK: 2:4 along K.
        backend: Whose kernels.
        algorithm: cuSPARSELt's; None takes its default.
    """
    if backend == "cutlass":
        from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

        packed, meta = sparse_semi_structured_from_dense_cutlass(w_NK)  # type: ignore[no-untyped-call]
        out_dtype = torch.int32 if x_MK.dtype == torch.int8 else None
        return lambda: torch._sparse_semi_structured_mm(packed, meta, x_MK.t(), out_dtype=out_dtype).t()
    compressed = torch._cslt_compress(w_NK)
    options: dict[str, Any] = {}
    if x_MK.dtype == torch.int8:
        options["out_dtype"] = torch.int32
    if algorithm is not None:
        options |= {
            "alg_id": algorithm.alg_id,
            "split_k": algorithm.split_k,
            "split_k_mode": algorithm.split_k_mode,
        }
    return lambda: torch._cslt_sparse_mm(compressed, x_MK.t(), **options).t()


def search_algorithm(x_MK: torch.Tensor, w_NK: torch.Tensor) -> Algorithm:
    """Let cuSPARSELt time its algorithms on these operands."""
    out_dtype = torch.int32 if x_MK.dtype == torch.int8 else None
    library: Any = torch._C._cusparselt  # the search has no other name
    found = library.mm_search(torch._cslt_compress(w_NK), x_MK.t(), None, None, out_dtype, False)
    return Algorithm(*(int(one) for one in found[:3]))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value, by the rules of `nm2trt.ort.compare_outputs`, on the device.

    NaN, infinities and fill values have to be the same on both sides, and set no size.

    Args:
        found: Any shape, any type of numbers.
        expected: The reference, of the same shape.

    Returns:
        0 or more; infinite where a NaN, an infinity or a fill value is on one side only.
    """
    found, expected = found.double(), expected.double()
    # A comparison with NaN is false.
    ordinary = (found.abs() < FILL_MAGNITUDE) & (expected.abs() < FILL_MAGNITUDE)
    same = (found == expected) | (found.isnan() & expected.isnan())
    if bool((~ordinary & ~same).any()):
        return math.inf
    if not found.numel():
        return 0.0
    difference = float(torch.where(ordinary, found - expected, 0).abs().max())
    scale = float(torch.where(ordinary, expected, 0).abs().max())
    return difference / scale if scale else difference
