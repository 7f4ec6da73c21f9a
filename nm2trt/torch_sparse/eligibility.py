"""Whether one of torch's 2:4 kernels takes a weight, and if not, why: `nm2trt.reasons` puts it into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import torch

from nm2trt.reasons import Reason, ReasonCode, TorchKernelCode
from nm2trt.torch_sparse.backends import BackendName, weight_multiples

_MULTIPLES: Mapping[BackendName, ReasonCode] = {
    "cusparselt": "cusparselt-multiples",
    "cutlass": "cutlass-multiples",
}
_ADVICE: Mapping[ReasonCode, str] = {
    "no-torch-kernel": "leave it dense here; TensorRT may have a kernel (nm2trt export)",
    "kernel-size": "leave it dense here; TensorRT has 2:4 convolutions (nm2trt export)",
    "grouped-convolution": "leave it dense",
    "padded-convolution": "leave it dense",
    "attention-call": "leave it dense, or use separate Linear projections",
    "never-called": "nothing: it costs no time",
    "no-matrix": "leave it dense",
    "not-on-gpu": "move the network to the GPU",
    "kernel-dtype": "use --precision fp16 or bf16",
    "cusparselt-multiples": "pad the features, or leave it dense",
    "cutlass-multiples": "pad the features, or leave it dense",
    "not-contiguous": "call .contiguous() on the weight",
    "dense": "leave it dense on purpose, or train it with --pattern 2:4 or prune it (nm2trt prune)",
    "broken-pattern": "train it with --pattern 2:4 or prune it (nm2trt prune)",
}
assert set(_ADVICE) == set(get_args(TorchKernelCode))


def why_not_eligible(weight_OI: torch.Tensor, backend: BackendName) -> Reason | None:
    """Check a weight against a backend's rules.

    Args:
        weight_OI: [out, in] as the product reads it.
        backend: Whose rules.

    Returns:
        The first rule that it breaks; None where the backend takes it.
    """
    if weight_OI.ndim != 2:
        return Reason("no-matrix", write_sizes(weight_OI.shape))
    if weight_OI.device.type != "cuda":
        return Reason("not-on-gpu", weight_OI.device.type)
    multiples = weight_multiples(backend, weight_OI.dtype)
    if multiples is None:
        return Reason("kernel-dtype", backend, str(weight_OI.dtype).removeprefix("torch."))
    rows, columns = weight_OI.shape
    if rows % multiples[0] or columns % multiples[1]:
        return Reason(
            _MULTIPLES[backend],
            write_sizes((rows, columns)),
            f"{multiples[0]} rows and {multiples[1]} columns",
        )
    if not weight_OI.is_contiguous():
        return Reason("not-contiguous", write_sizes(weight_OI.stride()))
    return None


def count_violations(weight_OI: torch.Tensor) -> int:
    """Groups of four along the input features with more than two non-zeros; all of them where four does not divide."""
    rows, columns = weight_OI.shape
    if columns % 4:
        return rows * -(-columns // 4)
    return int(((weight_OI.reshape(-1, 4) != 0).sum(dim=1) > 2).sum())


def advise(reason: Reason) -> str:
    """Say what to do about a reason whose code is a `TorchKernelCode`."""
    return _ADVICE[reason.code]


def write_sizes(sizes: Sequence[int]) -> str:
    """Sizes as reasons name them: 24x64."""
    return "x".join(map(str, sizes))
