"""Trained network -> ONNX file, its outputs checked against torch."""

from nm2trt.export.facts import eligible_fact, legal_fact
from nm2trt.export.inputs import INPUT
from nm2trt.export.numerics import TOLERANCES, Samples, check_numerics, numerics_samples
from nm2trt.export.onnx_graph import OPSET, exporter_version, onnx_bytes, onnx_from_module, ports
from nm2trt.export.source import ExportSource, load_run
from nm2trt.export.torch_graph import OUTPUT

__all__ = [
    "INPUT",
    "OPSET",
    "OUTPUT",
    "TOLERANCES",
    "ExportSource",
    "Samples",
    "check_numerics",
    "eligible_fact",
    "exporter_version",
    "legal_fact",
    "load_run",
    "numerics_samples",
    "onnx_bytes",
    "onnx_from_module",
    "ports",
]
