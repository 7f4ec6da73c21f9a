"""Network -> ONNX file, its outputs checked against what it was made from."""

from nm2trt.export.facts import eligible_fact, legal_fact
from nm2trt.export.inputs import INPUT, InputSpec, parse_inputs
from nm2trt.export.loading import export_source, source_kind
from nm2trt.export.network import Exported, graph_ports, settle_batch
from nm2trt.export.numerics import TOLERANCES, check_numerics
from nm2trt.export.onnx_graph import OPSET, exporter_version, onnx_bytes, onnx_from_module, ports
from nm2trt.export.reference import (
    OnnxReference,
    Samples,
    TorchReference,
    noise,
    sample_count,
    samples_of_data,
    samples_of_file,
)
from nm2trt.export.source import ExportSource, load_run
from nm2trt.export.torch_graph import OUTPUT
from nm2trt.onnx_tools.writing import check_onnx, write_onnx

__all__ = [
    "INPUT",
    "OPSET",
    "OUTPUT",
    "TOLERANCES",
    "ExportSource",
    "Exported",
    "InputSpec",
    "OnnxReference",
    "Samples",
    "TorchReference",
    "check_numerics",
    "check_onnx",
    "eligible_fact",
    "export_source",
    "exporter_version",
    "graph_ports",
    "legal_fact",
    "load_run",
    "noise",
    "onnx_bytes",
    "onnx_from_module",
    "parse_inputs",
    "ports",
    "sample_count",
    "samples_of_data",
    "samples_of_file",
    "settle_batch",
    "source_kind",
    "write_onnx",
]
