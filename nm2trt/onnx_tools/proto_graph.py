"""A graph's nodes and where their inputs come from, straight over its protobuf messages.

The surface is the part of onnx-ir's that reading weights needs (op_type, domain, inputs, attributes, producer), so
that the same rules read both. onnx-ir itself takes longer to import than most models take to judge, and wants every
tensor in memory; it serves those who rewrite graphs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import onnx

from nm2trt.errors import InputError
from nm2trt.library_errors import one_line
from nm2trt.onnx_tools.tensors import StoredConstant, as_text

_MOST_INLINED_NODES = 1_000_000
_LISTS = {
    "value_int": "int64_data",
    "value_ints": "int64_data",
    "value_float": "float_data",
    "value_floats": "float_data",
}


class Attribute:
    """An attribute that is read as a number or numbers."""

    def __init__(self, proto: onnx.AttributeProto) -> None:
        self._proto = proto

    def as_int(self) -> int:
        """Its integer; TypeError where it is none."""
        if self._proto.type != onnx.AttributeProto.INT:
            raise TypeError(f"attribute {as_text(self._proto.name)!r} is no integer")
        return int(self._proto.i)

    def as_ints(self) -> list[int]:
        """Its integers; TypeError where it holds none."""
        if self._proto.type != onnx.AttributeProto.INTS:
            raise TypeError(f"attribute {as_text(self._proto.name)!r} is no list of integers")
        return list(self._proto.ints)


class Value:
    """What a node reads or writes."""

    def __init__(
        self,
        name: str,
        node: Node | None = None,
        tensor: StoredConstant | None = None,
        *,
        sparse_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.name = name
        self.tensor = tensor
        """Its value, where it is stored in the graph."""
        self.sparse_shape = sparse_shape
        """Its shape, where it is stored as a sparse tensor, whose values are not read."""
        self.passed_in: tuple[Node, int] | None = None
        """Of an input of a Loop's or Scan's body: that node, and which of its inputs this is at first."""
        self._node = node

    def producer(self) -> Node | None:
        """The node that computes it."""
        return self._node


class Node:
    """One operator."""

    def __init__(self, proto: onnx.NodeProto, scope: _Scope) -> None:
        self.proto = proto
        self.op_type, self.domain, self.name = proto.op_type, proto.domain, proto.name
        self._scope = scope

    @cached_property
    def inputs(self) -> list[Value | None]:
        """What it reads; None for inputs that are left out."""
        return [self._scope.value(name) if name else None for name in self.proto.input]

    @property
    def outputs(self) -> list[Value]:
        """What it computes."""
        return [Value(name, self) for name in self.proto.output]

    @cached_property
    def attributes(self) -> dict[str, Attribute]:
        """By name."""
        return {attribute.name: Attribute(attribute) for attribute in self.proto.attribute}

    @property
    def sparse_constant_shape(self) -> tuple[int, ...] | None:
        """Shape of the sparse tensor inside a Constant node."""
        if self.op_type != "Constant" or self.domain not in ("", "ai.onnx"):
            return None
        found = (a.sparse_tensor for a in self.proto.attribute if a.name == "sparse_value")
        return next((tuple(tensor.dims) for tensor in found), None)

    @cached_property
    def constant(self) -> StoredConstant | None:
        """The tensor inside a Constant node."""
        if self.op_type != "Constant" or self.domain not in ("", "ai.onnx"):
            return None
        name = self.proto.output[0] if self.proto.output else ""
        for attribute in self.proto.attribute:
            if attribute.name == "value":
                return StoredConstant(attribute.t, self._scope.where, attribute.t.name or name)
            field = _LISTS.get(attribute.name)
            if field is not None:
                kind = onnx.TensorProto.INT64 if "int" in attribute.name else onnx.TensorProto.FLOAT
                plural = attribute.name.endswith("s")
                values = (attribute.ints if "int" in field else attribute.floats) if plural else None
                if values is None:
                    values = [attribute.i if "int" in field else attribute.f]
                tensor = onnx.TensorProto(data_type=kind, dims=[len(values)] if plural else [])
                getattr(tensor, field).extend(values)
                return StoredConstant(tensor, self._scope.where, name)
        return None

    def scopes(self) -> Iterator[_Scope]:
        """Graphs inside it: branches and loop bodies."""
        for attribute in self.proto.attribute:
            graphs = [attribute.g] if attribute.HasField("g") else []
            for graph in (*graphs, *attribute.graphs):
                scope = _Scope(graph, self._scope, self._scope.where)
                if self.op_type in ("Loop", "Scan"):
                    scope.connect(graph, self)
                yield scope


class _Scope:
    """The names of one graph; those of the graphs around it are visible inside."""

    def __init__(self, graph: onnx.GraphProto, outer: _Scope | None, where: Path) -> None:
        self.where = where
        self.nodes = [Node(node, self) for node in graph.node]
        self.outer = outer
        self.values = {value.name: Value(value.name) for value in graph.input}
        # Old models list their initializers as inputs, too.
        for tensor in graph.initializer:
            self.values[tensor.name] = Value(tensor.name, tensor=StoredConstant(tensor, where))
        for sparse in graph.sparse_initializer:
            self.values[sparse.values.name] = Value(sparse.values.name, sparse_shape=tuple(sparse.dims))
        for node in self.nodes:
            for name in node.proto.output:
                if name:
                    self.values[name] = Value(name, node, node.constant, sparse_shape=node.sparse_constant_shape)

    def connect(self, graph: onnx.GraphProto, node: Node) -> None:
        """Note which inputs of a Loop or Scan the inputs of its body are; they stand in the same order."""
        for index, value in enumerate(graph.input):
            if index < len(node.proto.input) and value.name in self.values:
                self.values[value.name].passed_in = node, index

    def value(self, name: str) -> Value:
        scope: _Scope | None = self
        while scope is not None:
            found = scope.values.get(name)
            if found is not None:
                return found
            scope = scope.outer
        return Value(name)

    def walk(self) -> Iterator[Node]:
        for node in self.nodes:
            yield node
            for scope in node.scopes():
                yield from scope.walk()


def graph_nodes(model: onnx.ModelProto, where: Path) -> Iterator[Node]:
    """Every node of a model, those of subgraphs among them; calls of the model's own functions are inlined.

    Raises:
        InputError: As `inlined`.
    """
    return _Scope(inlined(model, where).graph, None, where).walk()


def inlined(model: onnx.ModelProto, where: Path) -> onnx.ModelProto:
    """The model with the bodies of its own functions in place of their calls.

    Raises:
        InputError: Functions call each other in a circle, or grow beyond a million nodes when inlined.
    """
    if not model.functions:
        return model
    _check_functions(model, where)
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model)
    except Exception as error:  # noqa: BLE001 -- whatever a broken graph makes the library raise
        raise InputError(
            f"is no valid ONNX model: {one_line(error)}", where=where, hint="check it with onnx.checker"
        ) from None


def _check_functions(model: onnx.ModelProto, where: Path) -> None:
    """The inliner would follow a circle for ever, and write out what doubles with every call."""
    bodies = {(function.domain, function.name): function.node for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    open_calls: list[tuple[str, str]] = []

    def size(key: tuple[str, str]) -> int:
        if key in open_calls:
            raise InputError(f"function {as_text(key[1])!r} calls itself", where=where, hint="export the model again")
        if key not in sizes:
            open_calls.append(key)
            sizes[key] = counted(bodies[key])
            open_calls.pop()
        return sizes[key]

    def counted(nodes: object) -> int:
        calls = Counter((node.domain, node.op_type) for node in _all_nodes(nodes))
        total = sum(times * (size(key) if key in bodies else 1) for key, times in calls.items())
        if total > _MOST_INLINED_NODES:
            raise InputError("its functions grow beyond a million nodes when inlined", where=where)
        return total

    try:
        counted(model.graph.node)
        for key in bodies:
            size(key)
    except RecursionError:
        raise InputError("its functions call each other too deep", where=where) from None


def _all_nodes(nodes: object) -> Iterator[onnx.NodeProto]:
    for node in nodes:  # type: ignore[attr-defined]
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all_nodes(graph.node)
