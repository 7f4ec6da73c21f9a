"""Takes quantization out of a model: the float network that a quantized one stands for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from nm2trt.calibration.graph import QUANTIZED_OPS
from nm2trt.errors import InputError
from nm2trt.onnx_tools.constants import load_tensor, resolve

_PAIRS = ("QuantizeLinear", "DequantizeLinear")
_NEVER_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Sqrt", "Softplus")
_KEEPING_SIGN = (
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Reshape", "Flatten", "Transpose", "Squeeze"),
    *("Unsqueeze", "Identity", "Slice", "Gather", "Split", "Expand", "DepthToSpace", "SpaceToDepth", "Pad"),
)
"""Operators whose output is never negative where their first input is not."""
_CLIP_ENDS = (1.0, 6.0)
"""Where common clips end: a quantized range that ends there is one that was folded, as Relu6 is."""
_SAME_END = 1e-3


def without_quantization(
    proto: onnx.ModelProto,
    path: Path,
    restored: list[str] | None = None,
    clipped: Mapping[str, tuple[float, float]] | None = None,
) -> onnx.ModelProto:
    """Remove every Q and DQ; stored integers become the floats that they stand for, and a stored zero becomes 0.0.

    Quantizers drop a Relu or Clip before a Q whose range begins at 0, since Q itself clips there. Without Q it is put
    back: a Relu, or a Clip where the range ends at 1 or 6.

    Args:
        proto: With Q/DQ nodes of any kind, asymmetric ones too.
        path: For error lines.
        restored: Gets the names of the tensors behind which an activation was put back.
        clipped: Tensor -> range of those that are known to be clipped by their Q, behind which a Clip is put.

    Raises:
        InputError: It has integer operators (QLinearConv), or a scale that cannot be followed.
    """
    model = ir.from_proto(proto)
    nodes = list(model.graph)
    for node in nodes:
        if node.op_type in QUANTIZED_OPS and node.op_type not in _PAIRS:
            raise InputError(
                f"computes with {node.op_type}, whose float operator is not in the file",
                where=path,
                hint="calibrate the float model",
            )
    for node in nodes:
        if node.op_type not in _PAIRS or node.inputs[0] is None:
            continue
        value = node.inputs[0]
        new = value
        if node.op_type == "DequantizeLinear" and (stored := resolve(value, path)) is not None:
            if stored.graph_dtype.startswith("float"):
                new = value
            else:
                new = _float_constant(model, node, stored.value(), path)
        elif node.op_type == "QuantizeLinear" and (ends := _folded_ends(node, path, clipped or {})) is not None:
            new = _activation(model, node, value, *ends)
            if restored is not None:
                restored.append(str(value.name))
        _replace(model, node, new)
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
    _forget_types(model)
    result: onnx.ModelProto = ir.to_proto(model)
    del result.graph.value_info[:]
    return result


def quantized_ranges(proto: onnx.ModelProto, path: Path) -> dict[str, tuple[float, float, float]]:
    """Activations behind which a Q with one constant scale stands -> smallest and largest value kept, and the step."""
    model = ir.from_proto(proto)
    found: dict[str, tuple[float, float, float]] = {}
    for node in model.graph:
        if node.op_type == "QuantizeLinear" and (ends := _range(node, path)) is not None:
            assert node.inputs[0] is not None
            found.setdefault(str(node.inputs[0].name), ends)
    return found


def _range(node: ir.Node, path: Path) -> tuple[float, float, float] | None:
    """What a Q keeps of an activation, and its step; None for constants, graph inputs and scales along an axis."""
    value = node.inputs[0]
    if value is None or value.producer() is None or resolve(value, path) is not None:
        return None
    zero_value = node.inputs[2] if len(node.inputs) > 2 else None
    zero = None if zero_value is None else resolve(zero_value, path, parameter=True)
    scale = resolve(node.inputs[1], path, parameter=True)
    if scale is None or (zero is None and zero_value is not None):
        return None
    # The standard's own type and zero point, where none is given.
    points = np.zeros(1, np.uint8) if zero is None else np.asarray(load_tensor(zero.tensor, path))
    steps = load_tensor(scale.tensor, path).astype(np.float64).reshape(-1)
    if points.dtype.kind not in "iu" or points.size != 1 or steps.size != 1:
        return None
    limits, point, step = np.iinfo(points.dtype), int(points.reshape(-1)[0]), float(steps[0])
    return (limits.min - point) * step, (limits.max - point) * step, step


def _folded_ends(node: ir.Node, path: Path, clipped: Mapping[str, tuple[float, float]]) -> tuple[float, float] | None:
    """Where the activation begins and ends that a Q clips as, infinity for a Relu's end; None where there is none."""
    found = _range(node, path)
    value = node.inputs[0]
    if found is None or value is None:
        return None
    producer = value.producer()
    low, end, _ = found
    is_clip = producer is not None and producer.op_type == "Clip"
    known = clipped.get(str(value.name))
    if known is not None and not is_clip:
        return known
    if low != 0:
        return None
    folded = any(abs(end / common - 1) < _SAME_END for common in _CLIP_ENDS)
    bounded = is_clip or (producer is not None and producer.op_type in ("Sigmoid", "HardSigmoid", "Softmax"))
    if folded and not bounded:
        return 0.0, float(round(end))
    return None if _never_negative(value) else (0.0, np.inf)


def _never_negative(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is None:
        return False
    if producer.op_type in _KEEPING_SIGN and producer.inputs[0] is not None:
        return _never_negative(producer.inputs[0])
    if producer.op_type == "Concat":
        return all(one is not None and _never_negative(one) for one in producer.inputs)
    if producer.op_type == "Clip":
        low = producer.inputs[1] if len(producer.inputs) > 1 else None
        constant = low.const_value if low is not None else None
        if constant is None:
            attribute = producer.attributes.get("min")
            return attribute is not None and attribute.as_float() >= 0
        return bool(np.all(constant.numpy() >= 0))
    return producer.op_type in _NEVER_NEGATIVE


def _activation(model: ir.Model, node: ir.Node, value: ir.Value, low: float, end: float) -> ir.Value:
    """A Relu, or a Clip from `low` to `end`, between a tensor and what read it quantized."""
    name = _free_name(model, f"{value.name}_restored")
    if np.isfinite(end):
        dtype = np.float16 if value.dtype == ir.DataType.FLOAT16 else np.float32
        bounds = [
            _constant(model, f"{name}_{word}", np.asarray(end_of, dtype))
            for word, end_of in (("min", low), ("max", end))
        ]
        added = ir.node("Clip", [value, *bounds], name=name)
    else:
        added = ir.node("Relu", [value], name=name)
    output = added.outputs[0]
    output.name, output.type, output.shape = name, value.type, value.shape
    assert node.graph is not None
    node.graph.insert_before(node, added)
    return output


def _constant(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    model.graph.register_initializer(value)
    return value


def _float_constant(model: ir.Model, node: ir.Node, stored: NDArray[Any], path: Path) -> ir.Value:
    scale = resolve(node.inputs[1], path, parameter=True)
    has_zero = len(node.inputs) > 2 and node.inputs[2] is not None
    zero = resolve(node.inputs[2], path, parameter=True) if has_zero else None
    if scale is None or (zero is None and has_zero):
        raise InputError(f"the scale of {node.name or 'a DequantizeLinear'!r} is computed", where=path)
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    numbers = load_tensor(scale.tensor, path).astype(np.float32)
    zeros = np.zeros_like(numbers) if zero is None else load_tensor(zero.tensor, path).astype(np.float32)
    if numbers.size > 1:
        if numbers.ndim != 1 or numbers.size != stored.shape[axis]:
            raise InputError(f"{node.name or 'a DequantizeLinear'!r} has blocks of scales", where=path)
        shape = [-1 if index == axis % stored.ndim else 1 for index in range(stored.ndim)]
        numbers, zeros = numbers.reshape(shape), zeros.reshape(shape)
    array = ((stored.astype(np.float32) - zeros) * numbers).astype(np.float32)
    output = node.outputs[0]
    dtype = output.dtype or scale.tensor.dtype
    if dtype == ir.DataType.FLOAT16:
        array = array.astype(np.float16)
    source = node.inputs[0]
    name = _free_name(model, str(source.name if source is not None else output.name))
    return _constant(model, name, array)


def _free_name(model: ir.Model, name: str) -> str:
    for suffix in ("_quantized", "_quantised", "_int8"):  # codespell:ignore
        name = name.removesuffix(suffix)
    taken = {str(value) for value in model.graph.initializers}
    taken |= {str(value.name) for node in model.graph for value in node.outputs}
    found, number = name, 1
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    return found


def _replace(model: ir.Model, node: ir.Node, new: ir.Value) -> None:
    output = node.outputs[0]
    is_result = output in model.graph.outputs
    name = output.name
    ir.convenience.replace_all_uses_with(output, new, replace_graph_outputs=True)
    if is_result and not new.is_graph_input() and new.producer() is not None:
        # The graph's output keeps its name.
        output.name = f"{name}_removed"
        new.name = name
        new.type, new.shape = output.type, output.shape


def _forget_types(model: ir.Model) -> None:
    """Types between Q and DQ were integers; shape inference finds the new ones."""
    for node in model.graph:
        for value in node.outputs:
            if value not in model.graph.outputs:
                value.type = None
                value.shape = None
