"""From a node or weight in a graph to the module in torch that it came from, where the file says so."""

from __future__ import annotations

import ast
import re

import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"
_FOLDED_INTO = re.compile(r"(?:^|\.)(?:bn|norm|batch_?norm)\d*$")
_WEIGHT = re.compile(r"\.(?:weight|original|kernel)(?:_.*)?$")


def torch_name_of(node: onnx.NodeProto, weight: str) -> str:
    """Name the module, as `nm2trt train --layer` matches it; empty where neither file nor name tells.

    A weight that kept its torch name tells best. Else the scopes that torch's exporter writes into the node, or those
    in the node's name (the older exporter's "/layer1/layer1.0/conv1/Conv").
    """
    if match := _WEIGHT.search(weight):
        return weight[: match.start()]
    for entry in node.metadata_props:
        if entry.key == _SCOPES and (name := _innermost(entry.value)):
            return name
    parts = [part for part in node.name.split("/")[:-1] if part]
    if node.name.startswith("/") and parts:
        return _joined(parts)
    return ""


def _innermost(text: str) -> str:
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    if not isinstance(scopes, list) or len(scopes) < 2:
        return ""
    # The last scope is the operator itself; the one before it the module that called it.
    name = scopes[-2]
    return name if isinstance(name, str) and not _FOLDED_INTO.search(name) else ""


def _joined(parts: list[str]) -> str:
    """The older exporter repeats the path in every part: layer1, layer1.0, layer1.0.conv1 or just conv1."""
    name = ""
    for part in parts:
        name = part if part.startswith(f"{name}.") or not name else f"{name}.{part}"
    return name
