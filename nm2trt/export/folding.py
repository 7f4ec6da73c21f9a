"""Graph as the exporter wrote it -> graph whose weights are plain initializers with torch's names.

An exported graph reads the weight of a Linear on 3-D input through a Transpose, nn.MultiheadAttention's packed
projection likewise, and a parametrized weight through its mask. What is computed from constants alone is
computed here, once, and named after the parameter that it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter

from nm2trt.export.affine import fold_affine
from nm2trt.export.torch_graph import silenced
from nm2trt.onnx_tools.convert_precision import WEIGHT_OPERANDS

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


def simplify(model: ir.Model) -> dict[str, list[str]]:
    """Fold constants, BatchNorm (frozen, too) and no-ops in place, and name weights, operators and nodes after torch.

    Initializers keep their state dict names, also where a weight had to be transposed; the operator that consumes
    `layer.weight` is named `layer`; others are named `module/Operator`.

    Args:
        model: As torch.onnx wrote it, not optimized.

    Returns:
        Name of each parameter that a weight was computed from -> the names of its initializers, for those that changed
        their name (a mask was folded in, two layers share one parameter, or a layer reads a part of one).
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
            # The exporter's sequences of parts have become splits by now.
            renamed |= _fold_weights(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.LiftSubgraphInitializersToMainGraphPass()(model)
        fold_affine(model)
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


def _fold_weights(model: ir.Model) -> dict[str, list[str]]:
    parts = split_weights(model)
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
        return parts
    optimizer.fold_constants(model, should_fold=lambda node: node in wanted)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    renamed: dict[str, list[str]] = {}
    for old, new in _name_computed(model, computed):
        renamed.setdefault(old, []).append(new)
    return {name: [new for part in pieces for new in renamed.get(part, [part])] for name, pieces in parts.items()} | {
        name: new for name, new in renamed.items() if not any(name in pieces for pieces in parts.values())
    }


def split_weights(model: ir.Model) -> dict[str, list[str]]:
    """Cut parameters that the graph splits, such as a packed projection whose queries have another origin."""
    parts: dict[str, list[str]] = {}
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Split" and node.inputs else None
        if source is None or not source.is_initializer() or source.const_value is None:
            continue
        attribute = node.attributes.get("axis")
        axis = attribute.as_int() if attribute is not None else 0
        sizes = ir.convenience.get_const_tensor(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
        array = source.const_value.numpy()
        places = (
            np.cumsum(sizes.numpy())[:-1].tolist()
            if sizes is not None
            else [-(-array.shape[axis] // len(node.outputs)) * number for number in range(1, len(node.outputs))]
        )
        for number, (output, piece) in enumerate(zip(node.outputs, np.split(array, places, axis), strict=True), 1):
            name = f"{source.name}#{number}"
            value = ir.Value(
                name=name,
                type=ir.TensorType(source.const_value.dtype),
                shape=ir.Shape(piece.shape),
                const_value=ir.tensor(np.ascontiguousarray(piece), name=name),
            )
            model.graph.initializers[name] = value
            output.replace_all_uses_with(value)
            parts.setdefault(str(source.name), []).append(name)
    if parts:
        common.RemoveUnusedNodesPass()(model)
    return parts


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
        if scope and f"{scope}.weight" in wished:
            _give_way(model, f"{scope}.weight")
        wished.append(f"{scope}.weight" if scope else str(value.name))
        name = next((wish for wish in wished if wish not in initializers), None)
        number = 2
        while name is None or name in initializers:
            name, number = f"{wished[0]}#{number}", number + 1
        value.name = name
        if one.parameters and one.parameters[0] != name:
            yield one.parameters[0], name


def _give_way(model: ir.Model, name: str) -> None:
    """Of a parameter with two names the exporter keeps one; name it after the module that still reads it as it is."""
    initializers = model.graph.initializers
    value = initializers.get(name)
    scopes = {user.metadata_props.get(MODULE_KEY, "") for user, _ in value.uses()} if value is not None else set()
    if value is None or len(scopes) != 1:
        return
    other = f"{scopes.pop()}.weight"
    if other not in (name, ".weight") and other not in initializers:
        value.name = other


def _plain(name: str) -> str:
    """Name of the weight behind a mask or parametrization."""
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
    name, mark, number = str(value.name).partition("#")
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return f"{name.removesuffix(suffix)}{mark}{number}"
    return ""
