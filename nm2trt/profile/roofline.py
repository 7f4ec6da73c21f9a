"""What this machine can do at best: measured on a CPU, from the data sheet on a known GPU."""

from __future__ import annotations

import numpy as np

from nm2trt.artifacts.report_layers import RooflineRecord
from nm2trt.estimate.gpus import gpu_of_device

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
    import onnx
    from onnx import helper

    from nm2trt.profile.runners.onnxruntime_runner import OnnxRuntimeRunner

    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "aby"]
    graph = helper.make_graph([helper.make_node(op_type, ["a", "b"], ["y"])], "roof", ports[:2], ports[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    runner = OnnxRuntimeRunner(model, name="roofline")
    try:
        runner.prepare(shape[0])
        return float(np.min([runner.run_once() for _ in range(_CALLS)])) / 1000
    finally:
        runner.close()


def known_roofline(device: str, precision: str) -> RooflineRecord | None:
    """Look a GPU's data sheet up by the name that its driver gives, "NVIDIA A100 80GB PCIe"; None for others.

    Args:
        device: The driver's name.
        precision: "fp16", "fp32+fp16+int8"; the fastest type named counts. FP32 runs as TF32.
    """
    spec = gpu_of_device(device)
    if spec is None:
        return None
    kind = next((one for one in ("int8", "fp16", "bf16") if one in precision), "tf32")
    peaks = {str(name): peak for name, peak in spec.dense.items()}
    sparse = {str(name): peak for name, peak in spec.sparse.items()}
    if kind not in peaks:
        return None
    return RooflineRecord(
        source=f"data sheet of the {spec.name}, {kind}",
        dense_flops_per_s=peaks[kind] * 1e12,
        sparse_flops_per_s=sparse[kind] * 1e12 if kind in sparse else None,
        bytes_per_s=spec.bandwidth_gb_s * 1e9,
    )
