"""bfloat16 networks in float32, for ONNX Runtime's CPU provider, which has no bfloat16 kernels."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper


def widen_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a network with every bfloat16 weight, cast, input and output as float32; the weights' values stay."""
    widened = onnx.ModelProto()
    widened.CopyFrom(model)
    graph = widened.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.BFLOAT16:
                attribute.CopyFrom(helper.make_attribute(attribute.name, TensorProto.FLOAT))
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return widened
