"""Reads what TensorRT writes, in all its versions: build logs, inspector JSON, trtexec exports."""

from nm2trt.evidence.files import parse_log, read_builder_log, read_inspection, read_log
from nm2trt.evidence.inspector import InspectedLayer, Inspection, TensorInfo, parse_inspection
from nm2trt.evidence.layers import EngineEvidence, engine_evidence
from nm2trt.evidence.log import BuildLog, SparsityPass
from nm2trt.evidence.matching import OnnxNode, OnnxNodes, match_layer, match_name, onnx_nodes, read_onnx_nodes
from nm2trt.evidence.tactics import tactic_verdict

__all__ = [
    "BuildLog",
    "EngineEvidence",
    "InspectedLayer",
    "Inspection",
    "OnnxNode",
    "OnnxNodes",
    "SparsityPass",
    "TensorInfo",
    "engine_evidence",
    "match_layer",
    "match_name",
    "onnx_nodes",
    "parse_inspection",
    "parse_log",
    "read_builder_log",
    "read_inspection",
    "read_log",
    "read_onnx_nodes",
    "tactic_verdict",
]
