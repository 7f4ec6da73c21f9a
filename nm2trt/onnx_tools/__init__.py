"""Edits of ONNX graphs that several stages need: names for nameless nodes, a newer opset with the same meaning."""

from __future__ import annotations

from nm2trt.onnx_tools.node_names import name_nodes
from nm2trt.onnx_tools.opset import raise_opset

__all__ = ["name_nodes", "raise_opset"]
