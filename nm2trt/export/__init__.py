"""Trained network -> ONNX file, its outputs checked against torch."""

from nm2trt.export.numerics import TOLERANCES, Samples, check_numerics, numerics_samples
from nm2trt.export.onnx_graph import OPSET, exporter_version, onnx_bytes, onnx_from_module
from nm2trt.export.source import ExportSource, load_run

__all__ = [
    "OPSET",
    "TOLERANCES",
    "ExportSource",
    "Samples",
    "check_numerics",
    "exporter_version",
    "load_run",
    "numerics_samples",
    "onnx_bytes",
    "onnx_from_module",
]
