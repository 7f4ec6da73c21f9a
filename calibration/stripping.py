"""Takes quantisation out of a model: the float network that a quantised one stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from nm2trt.calibration.graph import QUANTISED_OPS
from nm2trt.errors import InputError
from nm2trt.layers.onnx_constants import load_tensor, resolve

_PAIRS = ("QuantizeLinear", "DequantizeLinear")


def without_quantisation(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Remove every Q and DQ; stored integers become the floats that they stand for, and a stored zero becomes 0.0.

    Args:
        proto: With Q/DQ nodes of any kind, asymmetric ones too.
        path: For error lines.

    Raises:
        InputError: It has integer operators (QLinearConv), or a scale that cannot be followed.
    """
    model = ir.from_proto(proto)
    nodes = list(model.graph)
    for node in nodes:
        if node.op_type in QUANTISED_OPS and node.op_type not in _PAIRS:
            raise InputError(
                f"computes with {node.op_type}, whose float operator is not in the file",
                where=path,
                mend="calibrate the float model",
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
        _replace(model, node, new)
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
    _forget_types(model)
    result: onnx.ModelProto = ir.to_proto(model)
    del result.graph.value_info[:]
    return result


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
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    model.graph.register_initializer(value)
    return value


def _free_name(model: ir.Model, name: str) -> str:
    for suffix in ("_quantized", "_quantised", "_int8"):
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
