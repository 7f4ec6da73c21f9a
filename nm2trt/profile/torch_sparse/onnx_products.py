"""The matrix products of an ONNX file as modules in PyTorch: no whole network, but what 2:4 kernels could speed up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nm2trt.artifacts import NetworkRecord, sha256_of
from nm2trt.errors import InputError
from nm2trt.profile.torch_sparse.network import TorchNetwork

NOTE = (
    "Only the ONNX file's matrix products and 1x1 convolutions were timed, one after the other on inputs of their own; "
    "what lies between them was left out. The gain of the whole network is smaller."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductRows:
    """Input of one product, in the form that `draw_feeds` takes."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    keyword: bool = False
    below: int | None = None


class Products(nn.Module):
    """Products side by side, each on its own input."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.products = nn.ModuleList()
        for weight_OI in weights.values():
            linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight_OI, requires_grad=False)
            self.products.append(linear)

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Multiply each input [B, rows, in] by its weight."""
        return [product(x_BRI) for product, x_BRI in zip(self.products, inputs, strict=True)]


def load_products(path: Path, *, shapes: Mapping[str, Sequence[int]]) -> TorchNetwork:
    """Read the weights of an ONNX file's matrix products and 1x1 convolutions.

    Args:
        path: The file, or a build folder.
        shapes: Inputs with dynamic dimensions beside the batch.

    Raises:
        InputError: The file cannot be read, or holds no such product with floating-point weights.
        ConfigError: Dynamic dimensions are left without a value.
    """
    from nm2trt.estimate.network_layers import layer_geometries, model_file
    from nm2trt.layers import open_source

    file = model_file(path)
    wanted = {name: (1, *sizes[1:]) for name, sizes in shapes.items()}
    layers = {
        one.weight: one
        for one in layer_geometries(file, 1, shapes=wanted)
        if one.weight and one.groups == 1 and one.kind in ("gemm", "conv") and one.taps == 1 and not one.quantized
    }
    weights: dict[str, torch.Tensor] = {}
    inputs: list[ProductRows] = []
    for layer in open_source(file).layers():
        geometry = layers.get(layer.name)
        if geometry is None or layer.name in weights:
            continue
        if layer.reduction_axis is None:
            continue
        values: Any = layer.weight()
        weight = torch.from_numpy(np.asarray(values, dtype=np.float32).copy())
        matrix_OI = weight.movedim(layer.reduction_axis, -1).reshape(-1, geometry.k)
        if tuple(matrix_OI.shape) != (geometry.n, geometry.k):
            continue
        weights[layer.name] = matrix_OI.contiguous()
        inputs.append(ProductRows(name=layer.name, shape=(geometry.m, geometry.k)))
    if not weights:
        raise InputError(
            "holds no matrix product or 1x1 convolution with floating-point weights",
            where=file,
            hint="profile it with --backend onnxruntime or tensorrt",
        )
    return TorchNetwork(
        module=Products(weights).eval(),
        inputs=inputs,
        record=NetworkRecord(
            kind="onnx-products",
            name=path.resolve().name,
            sha256=sha256_of(file),
            zero_share=None,
            note=NOTE,
        ),
        note=NOTE,
    )
