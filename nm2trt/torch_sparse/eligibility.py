"""Whether one of torch's 2:4 kernels takes a weight, and if not, why: codes, rendered as sentences on demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from nm2trt.torch_sparse.backends import BackendName, weight_multiples

ReasonCode = Literal[
    "kind",
    "kernel-size",
    "groups",
    "padding",
    "attention-call",
    "never-called",
    "dimensions",
    "device",
    "dtype",
    "multiples",
    "contiguity",
    "dense",
    "pattern",
]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a weight is not eligible: a code, and what a sentence needs beside it."""

    code: ReasonCode
    detail: Mapping[str, object] = field(default_factory=dict)


def why_not_eligible(weight_OI: torch.Tensor, backend: BackendName) -> Reason | None:
    """Check a weight against a backend's rules.

    Args:
        weight_OI: [out, in] as the product reads it.
        backend: Whose rules.

    Returns:
        The first rule that it breaks; None where the backend takes it.
    """
    if weight_OI.ndim != 2:
        return Reason("dimensions", {"shape": tuple(weight_OI.shape)})
    if weight_OI.device.type != "cuda":
        return Reason("device", {"device": weight_OI.device.type})
    multiples = weight_multiples(backend, weight_OI.dtype)
    if multiples is None:
        return Reason("dtype", {"dtype": str(weight_OI.dtype).removeprefix("torch."), "backend": backend})
    rows, columns = weight_OI.shape
    if rows % multiples[0] or columns % multiples[1]:
        return Reason(
            "multiples", {"shape": (rows, columns), "rows": multiples[0], "columns": multiples[1], "backend": backend}
        )
    if not weight_OI.is_contiguous():
        return Reason("contiguity", {"strides": tuple(weight_OI.stride())})
    return None


def count_violations(weight_OI: torch.Tensor) -> int:
    """Groups of four along the input features with more than two non-zeros; all of them where four does not divide."""
    rows, columns = weight_OI.shape
    if columns % 4:
        return rows * -(-columns // 4)
    return int(((weight_OI.reshape(-1, 4) != 0).sum(dim=1) > 2).sum())


def describe_reason(reason: Reason) -> str:
    """Say a reason in one line."""
    detail = reason.detail
    sentences: Mapping[ReasonCode, str] = {
        "kind": "{kind}: torch has no 2:4 kernel for it",
        "kernel-size": "{kernel} convolution: torch has 2:4 kernels for matrix products only, so for 1x1",
        "groups": "grouped convolution ({groups} groups): no matrix product",
        "padding": "1x1 convolution with padding {padding}: no plain matrix product",
        "attention-call": "called with {what}: only self-attention without masks and weights is rewritten",
        "never-called": "did not run for these inputs",
        "dimensions": "weight {shape} is no matrix",
        "device": "the weight is on the {device}, not on a GPU",
        "dtype": "{backend} has no 2:4 kernel for {dtype}",
        "multiples": "weight {shape}: {backend} needs multiples of {rows} rows and {columns} columns",
        "contiguity": "the weight is not contiguous (strides {strides})",
        "dense": "dense: {zeros} of its weights are zero; {violations} of {groups} groups of four have more than two "
        "non-zeros",
        "pattern": "not 2:4: {violations} of {groups} groups have more than two non-zeros",
    }
    words = {key: _shape(value) if isinstance(value, tuple) else value for key, value in detail.items()}
    return sentences[reason.code].format(**words)


def advise(reason: Reason) -> str:
    """Say what to do about it."""
    advice: Mapping[ReasonCode, str] = {
        "kind": "leave it dense here; TensorRT may have a kernel (nm2trt export)",
        "kernel-size": "leave it dense here; TensorRT has 2:4 convolutions (nm2trt export)",
        "groups": "leave it dense",
        "padding": "leave it dense",
        "attention-call": "leave it dense, or use separate Linear projections",
        "never-called": "nothing: it costs no time",
        "dimensions": "leave it dense",
        "device": "move the network to the GPU",
        "dtype": "use --precision fp16 or bf16",
        "multiples": "pad the features, or leave it dense",
        "contiguity": "call .contiguous() on the weight",
        "dense": "leave it dense on purpose, or train it with --pattern 2:4 or prune it (nm2trt prune)",
        "pattern": "train it with --pattern 2:4 or prune it (nm2trt prune)",
    }
    return advice[reason.code]


def _shape(sizes: tuple[object, ...]) -> str:
    return "x".join(map(str, sizes))
