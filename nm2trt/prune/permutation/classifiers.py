"""Find the classifiers of an ONNX graph by what lies behind them: from them to the outputs nothing is weighted.

A *last layer* is a matrix product with a constant, or a convolution, from whose output no other such layer is reached.
Whatever lies between it and a graph output (activations, softmax, scaling, reshapes, choices, merges of several heads)
does not matter, except for one thing: where its output is added to what an earlier layer made, it is the end of a
residual block, and the output is a feature map and not a score. A last convolution is a classifier only where classes
are chosen, scores made by a sigmoid, or its image becomes a row of numbers behind it (averaged over all places, or
flattened); otherwise it makes an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from nm2trt.onnx_tools.constants import as_text
from nm2trt.prune.permutation.parts import Part, parts_behind

_CHOICES = ("Softmax", "LogSoftmax", "ArgMax", "ArgMin", "TopK", "Hardmax", "GlobalAveragePool", "GlobalMaxPool")
_SUMS = ("Add", "Sum")
_DIRECT = (
    *("Identity", "Cast", "Softmax", "LogSoftmax", "Sigmoid", "Reshape", "Flatten", "Squeeze", "Unsqueeze"),
    *("QuantizeLinear", "DequantizeLinear", "Dropout"),
)
_ROW_RANK = 2
"""Samples and scores."""
_PRODUCTS = ("Gemm", "MatMul")


def classifier_nodes(model: ir.Model, weighted: Iterable[ir.Node]) -> dict[ir.Node, str]:
    """Nodes that make the scores -> why they stay dense.

    Args:
        model: Functions inlined.
        weighted: Nodes that multiply by a constant weight.
    """
    graph = _Flow(model, set(weighted))
    found: dict[ir.Node, str] = {}
    for node in graph.weighted:
        output = graph.output_behind(node)
        if output is not None:
            found[node] = f"the classifier: it makes graph output {as_text(output.name or '')!r}"
    return found


class _Flow:
    """Where values go; a node with subgraphs stands for what is inside it, too."""

    def __init__(self, model: ir.Model, weighted: set[ir.Node]) -> None:
        self.weighted = weighted
        self._outputs = set(model.graph.outputs)
        self._owner: dict[ir.Value, ir.Node] = {}
        self._bodies: dict[ir.Node, list[ir.Graph]] = {}
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            for graph in _graphs_of(node):
                self._bodies.setdefault(node, []).append(graph)
                self._owner |= dict.fromkeys(graph.outputs, node)
        self._last = {node for node in weighted if not self._later(node)}

    def output_behind(self, node: ir.Node) -> ir.Value | None:
        """The graph output that a node makes as a classifier; None where it is none."""
        if node.op_type in _PRODUCTS and (output := self._direct_output(node)) is not None:
            return output
        if node not in self._last:
            return None
        pending: list[tuple[ir.Value, Part, bool]] = [
            (value, None, node.op_type in _PRODUCTS) for value in node.outputs
        ]
        seen: set[tuple[ir.Value, Part, bool]] = set()
        while pending:
            here = pending.pop()
            if here in seen:
                continue
            seen.add(here)
            value, part, chosen = here
            if value in self._outputs and (chosen or _is_row(value)):
                return value
            for reader in self._readers(value):
                if self._ends_residual(reader, value):
                    continue
                chosen_here = chosen or reader.op_type in _CHOICES or _makes_scores(reader)
                pending += [(*behind, chosen_here) for behind in parts_behind(reader, value, part)]
        return None

    def _direct_output(self, node: ir.Node) -> ir.Value | None:
        """An output behind nothing but a bias and a change of form, also where the layer's result is used further."""
        pending = list(node.outputs)
        while pending:
            value = pending.pop()
            if value in self._outputs:
                return value
            for reader, _ in value.uses():
                bias = reader.op_type == "Add" and sum(not _is_constant(source) for source in reader.inputs) == 1
                if bias or reader.op_type in _DIRECT:
                    pending.extend(reader.outputs)
        return None

    def _readers(self, value: ir.Value) -> Iterator[ir.Node]:
        for node, _ in value.uses():
            yield node
        if value in self._owner:
            yield self._owner[value]

    def _later(self, node: ir.Node) -> bool:
        """Whether another weighted layer is reached."""
        pending: list[tuple[ir.Value, Part]] = [(value, None) for value in self._values_of(node)]
        seen = set(pending)
        while pending:
            value, part = pending.pop()
            for reader in self._readers(value):
                if reader in self.weighted and reader is not node:
                    return True
                inside = [(inner, None) for graph in self._bodies.get(reader, ()) for inner in graph.inputs]
                new = [state for state in (*parts_behind(reader, value, part), *inside) if state not in seen]
                seen.update(new)
                pending += new
        return False

    def _values_of(self, node: ir.Node) -> list[ir.Value]:
        return [*node.outputs, *(value for graph in self._bodies.get(node, ()) for value in graph.inputs)]

    def _ends_residual(self, reader: ir.Node, value: ir.Value) -> bool:
        """Whether a sum adds what an earlier layer made, from which further layers go on."""
        if reader.op_type not in _SUMS or reader.domain not in ("", "ai.onnx"):
            return False
        others = [source for source in reader.inputs if source is not None and source is not value]
        return any(layer not in self._last for source in others for layer in self._nearest(source))

    def _nearest(self, value: ir.Value) -> Iterator[ir.Node]:
        """The weighted layers before a value, the next on each way."""
        pending, seen = [value], {value}
        while pending:
            node = pending.pop().producer()
            if node is None:
                continue
            if node in self.weighted:
                yield node
                continue
            inside = [output for graph in self._bodies.get(node, ()) for output in graph.outputs]
            for source in (*node.inputs, *inside):
                if source is not None and source not in seen:
                    seen.add(source)
                    pending.append(source)


def _is_row(value: ir.Value) -> bool:
    """Whether an output holds a row of numbers for each sample and no image; its producer tells where no shape does."""
    if value.shape is not None:
        return len(value.shape) <= _ROW_RANK
    producer = value.producer()
    return producer is not None and producer.op_type == "Flatten"


def _makes_scores(node: ir.Node) -> bool:
    """Whether a sigmoid's result is used for itself, or times other scores; not as the gate of an activation."""
    if node.op_type != "Sigmoid":
        return False
    output = node.outputs[0]
    for reader, _ in output.uses():
        others = [source for source in reader.inputs if source is not None and source is not output]
        if reader.op_type == "Mul" and not all(_is_constant(other) or _is_sigmoid(other) for other in others):
            return False
    return True


def _is_sigmoid(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Sigmoid"


def _is_constant(value: ir.Value | None) -> bool:
    if value is None or value.is_initializer():
        return True
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant"


def _graphs_of(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
