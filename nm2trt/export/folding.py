"""Graph as the exporter wrote it -> graph whose weights are plain initializers with torch's names.

An exported graph reads the weight of a Linear on 3-D input through a Transpose, nn.MultiheadAttention's packed
projection likewise, and a parametrised weight through its mask. What is computed from constants alone is
computed here, once, and named after the parameter that it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter

from nm2trt.export.torch_graph import silenced

WEIGHT_OPERANDS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1)}
"""Operator -> which of its inputs may be a weight."""
MODULE_KEY = "nm2trt.module"
"""Metadata of a node: path of the torch module whose forward it is from."""

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_ROUNDS = 2
_SUFFIXES = (".weight", "_weight")
_PARAMETRIZED = (".parametrizations.weight.original", ".parametrizations.weight.original0")


@dataclass(slots=True)
class _Computed:
    """A weight that is computed from constants."""

    node: ir.Node
    index: int
    parameters: tuple[str, ...]
    """Names of the floating-point constants that it is computed from, the largest first."""


def simplify(model: ir.Model) -> dict[str, str]:
    """Fold constants, BatchNorm and no-ops in place, and name weights, operators and nodes after torch.

    Initializers keep their state dict names, also where a weight had to be transposed; the operator that consumes
    `layer.weight` is named `layer`; others are named `module/Operator`.

    Args:
        model: As torch.onnx wrote it, not optimized.

    Returns:
        Name of each parameter that a weight was computed from -> the initializer's name, for those that changed
        their name (a mask was folded in, or two layers share one parameter).
    """
    with silenced():
        common.InlinePass()(model)
        common.IdentityEliminationPass()(model)
        _note_modules(model)
        renamed = _fold_weights(model)
        for _ in range(_ROUNDS):
            optimizer.fold_constants(model, onnx_shape_inference=True)
            rewriter.rewrite(model)
            common.RemoveUnusedNodesPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.LiftSubgraphInitializersToMainGraphPass()(model)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
        common.OutputFixPass()(model)
        common.NameFixPass()(model)
    _strip_metadata(model)
    _name_nodes(model)
    return renamed


def weight_values(model: ir.Model) -> Iterator[tuple[ir.Node, int, ir.Value]]:
    """Every operand of a convolution or matrix product that may be a weight."""
    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx"):
            continue
        for index in WEIGHT_OPERANDS.get(node.op_type, ()):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None:
                yield node, index, value


def constant_ancestors(value: ir.Value) -> tuple[set[ir.Node], list[ir.Value]] | None:
    """The nodes and the initializers that a value is computed from; None where an input of the graph is among them."""
    nodes: set[ir.Node] = set()
    leaves: list[ir.Value] = []
    pending = [value]
    while pending:
        current = pending.pop()
        producer = current.producer()
        if producer is None:
            if not current.is_initializer() or current.is_graph_input():
                return None
            leaves.append(current)
        elif producer not in nodes:
            if any(
                attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
                for attribute in producer.attributes.values()
            ):
                return None
            nodes.add(producer)
            pending += [one for one in producer.inputs if one is not None]
    return nodes, leaves


def _fold_weights(model: ir.Model) -> dict[str, str]:
    computed: list[_Computed] = []
    wanted: set[ir.Node] = set()
    for node, index, value in weight_values(model):
        found = None if value.is_initializer() else constant_ancestors(value)
        if found is None:
            continue
        nodes, leaves = found
        wanted |= nodes
        floats = [
            leaf for leaf in leaves if leaf.dtype is not None and leaf.dtype.is_floating_point() and _rank(leaf) > 1
        ]
        floats.sort(key=lambda leaf: -(leaf.const_value.size if leaf.const_value is not None else 0))
        computed.append(_Computed(node, index, tuple(str(leaf.name) for leaf in floats)))
    if not computed:
        return {}
    optimizer.fold_constants(model, should_fold=lambda node: node in wanted)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    return dict(_name_computed(model, computed))


def _name_computed(model: ir.Model, computed: Iterable[_Computed]) -> Iterator[tuple[str, str]]:
    initializers = model.graph.initializers
    named: set[int] = set()
    for one in computed:
        value = one.node.inputs[one.index]
        if value is None or not value.is_initializer() or id(value) in named:
            continue
        named.add(id(value))
        wished = [_plain(name) for name in one.parameters[:1]]
        scope = one.node.metadata_props.get(MODULE_KEY, "")
        wished.append(f"{scope}.weight" if scope else str(value.name))
        name = next((wish for wish in wished if wish not in initializers), None)
        number = 2
        while name is None or name in initializers:
            name, number = f"{wished[0]}#{number}", number + 1
        value.name = name
        if one.parameters and one.parameters[0] != name:
            yield one.parameters[0], name


def _plain(name: str) -> str:
    """Name of the weight behind a mask or parametrisation."""
    for suffix in _PARAMETRIZED:
        if name.endswith(suffix):
            return name.removesuffix(suffix) + ".weight"
    return name.removesuffix("_orig")


def _rank(value: ir.Value) -> int:
    return 0 if value.shape is None else len(value.shape)


def _note_modules(model: ir.Model) -> None:
    """Keep the module path of what torch.export notes on every node."""
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get(_SCOPES_KEY, "")
        # A Python list of module paths, the operator's own name last.
        paths = [part.strip().strip("'\"") for part in scopes.strip("[]").split(",")]
        path = paths[-2] if len(paths) > 1 else ""
        if path and not path.startswith("_empty_nn_module_stack"):
            node.metadata_props[MODULE_KEY] = path


def _strip_metadata(model: ir.Model) -> None:
    """Remove what torch.export notes on every node and value: stack traces with this machine's paths."""
    graph = model.graph
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph.all_nodes():
        path = node.metadata_props.get(MODULE_KEY)
        node.metadata_props.clear()
        if path:
            node.metadata_props[MODULE_KEY] = path
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def _name_nodes(model: ir.Model) -> None:
    """Name each operator after the layer whose weight it takes, and the others after their module and operator."""
    taken: set[str] = set()
    for node in model.graph.all_nodes():
        layer = next(filter(None, (_layer_of(value) for value in node.inputs)), "")
        if not layer:
            path = node.metadata_props.get(MODULE_KEY, "")
            layer = f"{path}/{node.op_type}" if path else node.op_type
        name, number = layer, 2
        while name in taken:
            name, number = f"{layer}#{number}", number + 1
        taken.add(name)
        node.name = name


def _layer_of(value: ir.Value | None) -> str:
    if value is None or not value.is_initializer():
        return ""
    for suffix in _SUFFIXES:
        if (value.name or "").endswith(suffix):
            return str(value.name).removesuffix(suffix)
    return ""
