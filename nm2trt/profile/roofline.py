"""What this machine can do at best: measured on a CPU, from the data sheet on a known GPU."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from nm2trt.artifacts.report_layers import RooflineRecord
from nm2trt.profile.onnxruntime_runner import OnnxRuntimeRunner

_SIDE = 512
_ELEMENTS = 1 << 22
_CALLS = 40


def measured_roofline() -> RooflineRecord:
    """Time a large matrix product and a large addition on ONNX Runtime's CPU provider; the fastest call counts."""
    product_s = _fastest_s("MatMul", (_SIDE, _SIDE))
    addition_s = _fastest_s("Add", (1, _ELEMENTS))
    return RooflineRecord(
        source=f"measured here: fp32 product of {_SIDE}x{_SIDE} matrices; sum of two arrays of {_ELEMENTS} floats",
        dense_flops_per_s=2 * _SIDE**3 / product_s,
        sparse_flops_per_s=None,
        bytes_per_s=3 * 4 * _ELEMENTS / addition_s,
    )


def _fastest_s(op_type: str, shape: tuple[int, ...]) -> float:
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "aby"]
    graph = helper.make_graph([helper.make_node(op_type, ["a", "b"], ["y"])], "roof", ports[:2], ports[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    runner = OnnxRuntimeRunner(model, name="roofline")
    try:
        runner.prepare(shape[0])
        return float(np.min([runner.run_once() for _ in range(_CALLS)])) / 1000
    finally:
        runner.close()
