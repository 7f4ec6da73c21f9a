"""Operations and traffic of engine layers, from the inspector's own figures: for measurements without their network."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from nm2trt.evidence.inspector import InspectedLayer, Inspection, TensorInfo

_SIZES = (("int8", 1), ("fp8", 1), ("int64", 8), ("int32", 4), ("fp16", 2), ("half", 2), ("bf16", 2), ("fp32", 4))
_SIZES_BY_WEIGHTS = {"int8": 1, "half": 2, "float": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a layer with weights has to do."""

    flops: int
    bytes: int | None
    """Input, output and weights once; None where a type is not told."""
    shape: str


def work_of(inspection: Inspection | None) -> dict[str, Work]:
    """Layer name -> work, for the layers whose weights the inspector counts."""
    if inspection is None:
        return {}
    return {layer.name: found for layer in inspection.layers if (found := _work(layer)) is not None}


def _work(layer: InspectedLayer) -> Work | None:
    if not layer.weights_count or not layer.outputs or not layer.inputs:
        return None
    output = _before_pooling(layer)
    # Every weight meets every output position of its channel once: groups and kernel size are in the count.
    positions = math.prod((output[0], *output[2:])) if len(output) > 1 else 1
    sizes = [_bytes(tensor) for tensor in (*layer.inputs, *layer.outputs)]
    weights = _SIZES_BY_WEIGHTS.get(layer.weights_type.lower())
    known = [size for size in sizes if size is not None]
    total = sum(known) + layer.weights_count * (weights or 0)
    shapes = ["x".join(map(str, one.dimensions)) for one in (layer.inputs[0], layer.outputs[0])]
    return Work(
        flops=2 * layer.weights_count * positions,
        bytes=total if len(known) == len(sizes) and weights is not None else None,
        shape=" -> ".join(shapes),
    )


def _before_pooling(layer: InspectedLayer) -> tuple[int, ...]:
    """The convolution's own output where a pooling is fused behind it: from the input and the stride."""
    output = layer.outputs[0].dimensions
    stride = layer.fields.get("ConvStride")
    if layer.fields.get("ParameterType") != "ConvActPool" or not isinstance(stride, list):
        return output
    spatial = layer.inputs[0].dimensions[2:]
    return (*output[:2], *(-(-size // step) for size, step in zip(spatial, stride, strict=False) if type(step) is int))


def _bytes(tensor: TensorInfo) -> int | None:
    text = f"{tensor.dtype} {tensor.format}".lower().replace("float", "fp32")
    kind = next((size for name, size in _SIZES if re.search(rf"\b{name}\b", text)), None)
    return None if kind is None or not tensor.dimensions else math.prod(tensor.dimensions) * kind
