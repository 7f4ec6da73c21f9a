"""Quantized ONNX of other tools: what TensorRT takes of it, and INT32 biases as the floats that they stand for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir

from nm2trt.errors import InputError

INTEGER_OPS = frozenset(
    (
        *("DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
        *("QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearSigmoid", "QLinearLeakyRelu", "QAttention"),
        *("QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearSoftmax", "DynamicQuantizeMatMul"),
        *("MatMulIntegerToFloat", "DynamicQuantizeLSTM", "QEmbedLayerNormalization", "QLinearReduceMean"),
    )
)
"""Operators of ONNX and of com.microsoft that compute in integers: ONNX Runtime's QOperator and dynamic formats."""
ROUNDING_OPS = frozenset(("QuantizeLinear", "DequantizeLinear")) | INTEGER_OPS
"""Operators that round to integers: a rounding step more or less is no error."""
_LISTED = 3


def check_integer_operators(model: ir.Model, file: Path) -> None:
    """Refuse operators that compute in integers, which TensorRT does not have.

    Raises:
        InputError: There are some: the line says which format that is and how to go on.
    """
    counts = Counter(node.op_type for node in model.graph.all_nodes() if node.op_type in INTEGER_OPS)
    if not counts:
        return
    dynamic = counts.keys() & {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
    kind = "quantize_dynamic" if dynamic else "QOperator format"
    listed = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    raise InputError(
        f"computes with integer operators ({listed}), as ONNX Runtime's {kind} has them; TensorRT takes INT8 as "
        "QuantizeLinear and DequantizeLinear only",
        where=file,
        hint="calibrate the float model with `nm2trt calibrate`",
    )


def check_tensorrt_takes(model: ir.Model, file: Path) -> None:
    """Refuse Q/DQ that TensorRT's parser refuses, before it does in words that do not tell the cause.

    Raises:
        InputError: A zero point is not 0, or a bias is INT32 behind DequantizeLinear.
    """
    check_integer_operators(model, file)
    pairs = [node for node in model.graph.all_nodes() if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in pairs:
        zero = node.inputs[2].const_value if len(node.inputs) > 2 and node.inputs[2] is not None else None
        values = np.zeros(0) if zero is None else np.asarray(zero.numpy()).reshape(-1)
        if values.size and values.dtype.kind in "iu" and values.any():
            raise InputError(
                f"is quantized asymmetrically: {node.op_type} {node.name or node.outputs[0].name} has zero point "
                f"{int(values[values != 0][0])}, and TensorRT takes only 0",
                where=file,
                hint="calibrate it anew with `nm2trt calibrate --resymmetrize`, or quantize with "
                "extra_options={'ActivationSymmetric': True, 'WeightSymmetric': True}",
            )
    if biases := quantized_biases(model):
        names = ", ".join(str(node.inputs[0].name) for node in biases[:_LISTED] if node.inputs[0] is not None)
        more = f" and {len(biases) - _LISTED} more" if len(biases) > _LISTED else ""
        raise InputError(
            f"has {len(biases)} INT32 biases behind DequantizeLinear ({names}{more}), as ONNX Runtime's "
            "quantize_static writes them, and TensorRT takes biases in floating point only",
            where=file,
            hint="store them as the floats that they stand for with --float-bias, quantize with "
            "extra_options={'QuantizeBias': False}, or calibrate anew with `nm2trt calibrate --resymmetrize`",
        )


def quantized_biases(model: ir.Model) -> list[ir.Node]:
    """DequantizeLinear nodes whose input is a stored INT32 tensor."""
    return [
        node
        for node in model.graph.all_nodes()
        if node.op_type == "DequantizeLinear"
        and node.inputs[0] is not None
        and node.inputs[0].const_value is not None
        and node.inputs[0].dtype == ir.DataType.INT32
    ]


def float_biases(model: ir.Model, file: Path) -> int:
    """Store INT32 biases as floats in place: integer times scale, as DequantizeLinear computes it, to the last bit.

    Args:
        model: Changed in place.
        file: For error lines.

    Returns:
        How many were stored.

    Raises:
        InputError: A scale is computed while the graph runs, or does not fit its bias.
    """
    nodes = quantized_biases(model)
    for node in nodes:
        source, scale = node.inputs[0], node.inputs[1]
        assert source is not None
        assert source.const_value is not None
        if scale is None or scale.const_value is None:
            raise InputError(f"the scale of {node.name} is no stored tensor", where=file)
        scales = np.asarray(scale.const_value.numpy())
        stored = np.asarray(source.const_value.numpy())
        zero = node.inputs[2].const_value if len(node.inputs) > 2 and node.inputs[2] is not None else None
        if zero is not None and np.asarray(zero.numpy()).any():
            raise InputError(f"the INT32 bias of {node.name} has a zero point that is not 0", where=file)
        if scales.size > 1:
            axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
            axis = axis % stored.ndim if stored.ndim > 1 else 0
            if scales.ndim != 1 or scales.size != stored.shape[axis]:
                raise InputError(f"the scales of {node.name} do not fit its bias", where=file)
            scales = scales.reshape([-1 if place == axis else 1 for place in range(stored.ndim)])
        values = (stored.astype(scales.dtype) * scales.reshape(scales.shape if scales.size > 1 else ())).astype(
            scales.dtype
        )
        output = node.outputs[0]
        name = str(output.name)
        tensor = ir.tensor(values, name=name)
        new = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape))
        ir.convenience.replace_all_uses_with(output, new)
        output.name = f"{name}/removed"
        model.graph.register_initializer(new)
        assert node.graph is not None
        node.graph.remove(node, safe=True)
    return len(nodes)
