"""Leads the layers of an engine back to the ONNX nodes that were fused into them, and to the weights of those nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nm2trt.errors import InputError
from nm2trt.evidence.inspector import InspectedLayer
from nm2trt.evidence.names import parse_name

_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose", "FusedConv", "FusedGemm"})
_PASSES_ON = frozenset({"QuantizeLinear", "DequantizeLinear", "Transpose", "Cast", "Identity", "Reshape", "Squeeze"})


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxNode:
    """One node of the graph."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight: str = ""
    """Initializer that it multiplies by; empty where it has none."""


@dataclass(slots=True)
class OnnxNodes:
    """The nodes of an ONNX graph by name; subgraphs of If and Loop are left out."""

    nodes: dict[str, OnnxNode] = field(default_factory=dict)
    _by_output: dict[str, OnnxNode] = field(default_factory=dict)
    _by_weight: dict[str, str] = field(default_factory=dict)
    _users: dict[str, list[OnnxNode]] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: Iterable[OnnxNode]) -> OnnxNodes:
        """Index nodes; those without a name cannot be found again and are left out of the index of names."""
        made = cls()
        for node in nodes:
            if node.name:
                made.nodes.setdefault(node.name, node)
            if node.weight:
                made._by_weight.setdefault(node.weight, node.name)
            for output in node.outputs:
                made._by_output.setdefault(output, node)
            for value in node.inputs:
                made._users.setdefault(value, []).append(node)
        return made

    def between(self, first: str, last: str) -> tuple[str, ...]:
        """Names of the nodes on a path from `first` to `last`, both included; in the graph's order."""
        start, end = self.nodes.get(first), self.nodes.get(last)
        if start is None or end is None:
            return tuple(name for name in (first, last) if name in self.nodes)
        after = self._reach(start, forward=True)
        before = self._reach(end, forward=False)
        return tuple(name for name in self.nodes if name in after and name in before)

    def weight_node(self, text: str) -> str | None:
        """The node that a part of a layer's name means: its own name, or its weight's, or its output's."""
        if text in self.nodes:
            return text
        if text in self._by_weight:
            return self._by_weight[text]
        made = self._by_output.get(text)
        return made.name if made is not None and made.name else None

    def _reach(self, start: OnnxNode, *, forward: bool) -> set[str]:
        seen, waiting = {start.name}, [start]
        while waiting:
            node = waiting.pop()
            if forward:
                following = [user for value in node.outputs for user in self._users.get(value, ())]
            else:
                following = [self._by_output[value] for value in node.inputs if value in self._by_output]
            for other in following:
                # A node without a name is walked through by its first output.
                key = other.name or f"\0{other.outputs[:1]}"
                if key not in seen:
                    seen.add(key)
                    waiting.append(other)
        return seen


def read_onnx_nodes(path: Path) -> OnnxNodes:
    """Read the nodes of an ONNX file; weights stay where they are.

    Raises:
        InputError: The file is missing or no ONNX.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except Exception as error:  # noqa: BLE001 -- the parser's error types are not documented
        raise InputError(f"no readable ONNX: {error}", where=path) from None
    return onnx_nodes(model)


def onnx_nodes(model: Any) -> OnnxNodes:
    """Index the nodes of a `onnx.ModelProto`."""
    constants = {tensor.name for tensor in model.graph.initializer}
    makers: dict[str, Any] = {}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants.update(node.output)
        for output in node.output:
            makers[output] = node
    return OnnxNodes.of(
        OnnxNode(
            name=node.name,
            op=node.op_type,
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            weight=_weight(node, makers, constants),
        )
        for node in model.graph.node
    )


def match_layer(layer: InspectedLayer, graph: OnnxNodes | None) -> tuple[str, ...]:
    """Names of the ONNX nodes that a layer runs.

    The inspector's Metadata is believed first. Without it, the layer's name is taken apart, and with the graph at hand
    only names of nodes (or of their weights and outputs) count.

    Args:
        layer: As the inspector or the log describes it.
        graph: The network that the engine was built from; None where it is not at hand.
    """
    if layer.onnx_nodes:
        return layer.onnx_nodes
    return match_name(layer.name, graph)


def match_name(text: str, graph: OnnxNodes | None) -> tuple[str, ...]:
    """Names of the ONNX nodes in an engine layer's name; empty for copies and for names of the compiler's own."""
    name = parse_name(text)
    found: dict[str, None] = {}
    for first, last in name.spans:
        between = graph.between(first, last) if graph is not None else (first, last)
        found.update(dict.fromkeys(between))
    for part in name.parts:
        if graph is None:
            if not part.startswith(("__my", "Reformat")):
                found[part] = None
            continue
        node = graph.weight_node(part)
        if node is None and "_" in part:
            # A node that became two layers carries a number: fc_0 of fc.
            stem, _, number = part.rpartition("_")
            node = stem if number.isdigit() and stem in graph.nodes else None
        if node is not None:
            found[node] = None
    return tuple(found)


def weights_of(nodes: Iterable[str], graph: OnnxNodes | None) -> tuple[str, ...]:
    """Initializers that the nodes multiply by: torch's names, where nm2trt exported the file."""
    if graph is None:
        return ()
    named = (graph.nodes[name].weight for name in nodes if name in graph.nodes)
    return tuple(dict.fromkeys(weight for weight in named if weight))


def _weight(node: Any, makers: Mapping[str, Any], constants: set[str]) -> str:
    if node.op_type not in _WEIGHTED:
        return ""
    for index in (1, 0):
        if index >= len(node.input):
            continue
        value, steps = node.input[index], 0
        while value in makers and makers[value].op_type in _PASSES_ON and makers[value].input and steps < len(makers):
            value, steps = makers[value].input[0], steps + 1
        if value in constants:
            return str(value)
        if node.op_type != "MatMul":
            break
    return ""
