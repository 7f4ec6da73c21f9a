"""Graph in one floating-point type -> the same graph in another, strongly typed throughout.

TensorRT 11 and TensorRT-RTX take each type as the graph states it. What the ONNX standard knows only in float32 at
the graph's opset stays in float32 between casts; which types an operator takes is read from its schema.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from nm2trt.errors import InputError

Precision = Literal["fp32", "fp16", "bf16"]
IoDtype = Literal["fp32", "same"]

IR_DTYPE = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
NUMPY_DTYPE: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
LARGEST = {"fp32": 3.4028234663852886e38, "fp16": 65504.0, "bf16": 3.3895313892515355e38}

_SCHEMA_TYPE = {
    ir.DataType.FLOAT: "tensor(float)",
    ir.DataType.FLOAT16: "tensor(float16)",
    ir.DataType.BFLOAT16: "tensor(bfloat16)",
}
_DTYPE_ATTRIBUTES = ("to", "dtype")
_LISTED = 8
WEIGHT_OPERANDS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1)}
"""Operator -> which of its inputs may be a weight."""
_DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(slots=True)
class Conversion:
    """What a conversion did beside changing types."""

    kept_float32: list[str] = field(default_factory=list)
    """Nodes with an input or output that ONNX knows only in float32."""
    clamped: list[str] = field(default_factory=list)
    """Constants that are no weights and lay beyond the type's range, such as the -3.4e38 of an attention mask."""


def convert(
    model: ir.Model,
    target: Precision,
    *,
    io_dtype: IoDtype = "fp32",
    source: Precision = "fp32",
    parameters: Collection[str] = (),
) -> Conversion:
    """Change the floating-point type of a graph in place.

    Args:
        model: Functions inlined.
        target: Type of weights and arithmetic afterwards.
        io_dtype: "fp32" leaves the type of the graph's inputs and outputs as it is and casts inside them.
        source: The type that is replaced.
        parameters: Names of initializers whose values must never be clamped, beside those that convolutions and matrix
            products read.

    Raises:
        InputError: A weight is beyond the type's range (all are named), or a convolution or matrix product does not
            exist in that type at the graph's opset.
    """
    done = Conversion()
    if target == source:
        return done
    old, new = IR_DTYPE[source], IR_DTYPE[target]
    plan = _plan(model, old, new)
    _check_weights_convert(plan, model, new)
    _convert_constants(model, plan, target, old, _weights(model) | set(parameters), done)
    for node, fixed_inputs, fixed_outputs in plan:
        _convert_node(node, fixed_inputs, fixed_outputs, old, new)
        if (fixed_inputs or fixed_outputs) and node.op_type not in ("Cast", "CastLike"):
            done.kept_float32.append(str(node.name))
    for node, fixed_inputs, fixed_outputs in plan:
        # Where the operator itself has to stay in the old type, its bodies keep their edges, and cast inside.
        edges: IoDtype = "fp32" if fixed_inputs or fixed_outputs else "same"
        for body in _bodies(node):
            _convert_edges(body, old, new, edges)
    _convert_edges(model.graph, old, new, io_dtype)
    return done


_Plan = list[tuple[ir.Node, tuple[int, ...], tuple[int, ...]]]


def _plan(model: ir.Model, old: ir.DataType, new: ir.DataType) -> _Plan:
    """For every node: indices of the inputs and outputs that have to stay in the old type."""
    plan = []
    for node in model.graph.all_nodes():
        version = model.opset_imports.get(node.domain, model.opset_imports.get("", 1))
        inputs, outputs = _fixed(node.domain, node.op_type, version, _SCHEMA_TYPE[new])
        fixed_inputs = tuple(
            i for i, v in enumerate(node.inputs) if v is not None and v.dtype == old and _at(inputs, i)
        )
        fixed_outputs = tuple(i for i, v in enumerate(node.outputs) if v.dtype == old and _at(outputs, i))
        plan.append((node, fixed_inputs, fixed_outputs))
    return plan


def _at(flags: tuple[bool, ...], index: int) -> bool:
    # The last parameter of a variadic operator stands for all that follow.
    return bool(flags) and flags[min(index, len(flags) - 1)]


@lru_cache(maxsize=4096)
def _fixed(domain: str, op_type: str, version: int, wanted: str) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Whether each input and output of an operator is a type of its own that `wanted` is not among."""
    try:
        schema = onnx.defs.get_schema(op_type, version, "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        # Unknown operators stay in the type that they were written in.
        return (True,), (True,)
    constraints = {one.type_param_str: set(one.allowed_type_strs) for one in schema.type_constraints}

    def refuses(parameter: Any) -> bool:
        return wanted not in constraints.get(parameter.type_str, {parameter.type_str})

    return tuple(map(refuses, schema.inputs)), tuple(map(refuses, schema.outputs))


def _check_weights_convert(plan: _Plan, model: ir.Model, new: ir.DataType) -> None:
    stuck = [
        node for node, fixed, _ in plan if fixed and node.op_type in WEIGHT_OPERANDS and node.domain in _DEFAULT_DOMAINS
    ]
    if not stuck:
        return
    named = ", ".join(f"{node.name} ({node.op_type})" for node in stuck[:_LISTED])
    more = f" and {len(stuck) - _LISTED} more" if len(stuck) > _LISTED else ""
    raise InputError(
        f"opset {model.opset_imports.get('', 0)} is too old: it has no {new.name.lower()} form of {named}{more}",
        where="--precision",
        hint="export with opset 22 or newer, or raise it with onnx.version_converter",
    )


def _weights(model: ir.Model) -> set[str]:
    """Names of the initializers that a convolution or matrix product reads."""
    return {
        str(node.inputs[index].name)  # type: ignore[union-attr]
        for node in model.graph.all_nodes()
        for index in WEIGHT_OPERANDS.get(node.op_type, ())
        if index < len(node.inputs) and node.inputs[index] is not None
    }


def _convert_constants(
    model: ir.Model, plan: _Plan, target: Precision, old: ir.DataType, weights: set[str], done: Conversion
) -> None:
    kept = {id(node.inputs[i]) for node, fixed, _ in plan for i in fixed}
    plain = {id(v) for node, fixed, _ in plan for i, v in enumerate(node.inputs) if v is not None and i not in fixed}
    beyond = []
    for graph in _graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            # One that is read in its old type only needs no cast behind it.
            if tensor is None or tensor.dtype != old or (id(value) in kept and id(value) not in plain):
                continue
            converted, largest = _converted(tensor, target, clamp=value.name not in weights)
            if largest is not None and value.name in weights:
                beyond.append(f"{value.name} ({largest:g})")
            elif largest is not None:
                done.clamped.append(f"{value.name} ({largest:g})")
            value.const_value = converted
            value.dtype = IR_DTYPE[target]
    if beyond:
        raise InputError(
            f"weights beyond the largest {target}, {LARGEST[target]:g}: {', '.join(beyond)}",
            where="--precision",
            hint="use --precision bf16 or fp32, or train with smaller weights",
        )
    for node, _, _ in plan:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == old:
                node.attributes[name] = ir.AttrTensor(name, _converted(attribute.as_tensor(), target, clamp=True)[0])


def _graphs(model: ir.Model) -> Iterator[Any]:
    yield model.graph
    yield from model.graph.subgraphs()


def _converted(tensor: ir.TensorProtocol, target: Precision, *, clamp: bool) -> tuple[ir.TensorProtocol, float | None]:
    """The tensor in the new type, and its largest finite value where that is beyond the type's range."""
    array = np.asarray(tensor.numpy()).astype(np.float32)
    limit = np.float32(LARGEST[target])
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = array.astype(NUMPY_DTYPE[target])
        # Rounding decides, as it does in the engine: 65504.4 is still 65504.
        over = np.isinf(narrow.astype(np.float32)) & np.isfinite(array)
    largest = None
    if over.any():
        values = array[over]
        largest = float(values.flat[int(np.abs(values).argmax())])
        if clamp:
            narrow = np.where(over, np.copysign(limit, array), array).astype(NUMPY_DTYPE[target])
    return ir.tensor(narrow, dtype=IR_DTYPE[target], name=tensor.name), largest


def _convert_node(
    node: ir.Node, fixed_inputs: tuple[int, ...], fixed_outputs: tuple[int, ...], old: ir.DataType, new: ir.DataType
) -> None:
    for name in _DTYPE_ATTRIBUTES:
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.type == ir.AttributeType.INT and attribute.as_int() == int(old):
            node.attributes[name] = ir.AttrInt64(name, int(new))
    graph = node.graph
    assert graph is not None
    for index in fixed_inputs:
        value = node.inputs[index]
        assert value is not None
        # A constant that only such inputs read was left as it is.
        if value.is_initializer() and value.dtype == old and not value.is_graph_input():
            continue
        cast = ir.node("Cast", [value], attributes={"to": int(old)}, name=f"{node.name}/to_{old.name.lower()}_{index}")
        _typed(cast, old, value)
        graph.insert_before(node, cast)
        node.replace_input_with(index, cast.outputs[0])
    for index, value in enumerate(node.outputs):
        if value.dtype != old:
            continue
        if index not in fixed_outputs:
            value.dtype = new
            continue
        cast = ir.node("Cast", [value], attributes={"to": int(new)}, name=f"{node.name}/to_{new.name.lower()}_{index}")
        _typed(cast, new, value)
        graph.insert_after(node, cast)
        for user, position in tuple(value.uses()):
            if user is not cast:
                user.replace_input_with(position, cast.outputs[0])
        if value.is_graph_output():
            _replace_output(graph, value, cast.outputs[0])


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """Subgraphs of a Loop, Scan or If, not those inside them."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _convert_edges(graph: ir.Graph, old: ir.DataType, new: ir.DataType, io_dtype: IoDtype) -> None:
    """Give a graph's inputs and outputs the new type, or cast inside them."""
    for value in [one for one in graph.inputs if one.dtype == old]:
        if io_dtype == "same":
            value.dtype = new
            continue
        uses = tuple(value.uses())
        if not uses:
            continue
        cast = ir.node("Cast", [value], attributes={"to": int(new)}, name=f"{value.name}/to_{new.name.lower()}")
        _typed(cast, new, value)
        graph.insert_before(graph[0], cast)
        for user, position in uses:
            user.replace_input_with(position, cast.outputs[0])
    for value in [one for one in graph.outputs if one.dtype == new]:
        if io_dtype == "same" or value.is_graph_input():
            continue
        name = str(value.name)
        value.name = f"{name}/{new.name.lower()}"
        cast = ir.node("Cast", [value], attributes={"to": int(old)}, name=f"{name}/to_{old.name.lower()}")
        _typed(cast, old, value)
        cast.outputs[0].name = name
        graph.append(cast)
        _replace_output(graph, value, cast.outputs[0])


def _typed(cast: ir.Node, dtype: ir.DataType, like: ir.Value) -> None:
    output = cast.outputs[0]
    output.name = f"{like.name}/{dtype.name.lower()}/{cast.name}"
    output.dtype = dtype
    output.shape = like.shape


def _replace_output(graph: Any, old: ir.Value, new: ir.Value) -> None:
    for index, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[index] = new
