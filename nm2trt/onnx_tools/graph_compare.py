"""Questions to an ONNX graph: is it the same as another, which precision has it, how many of its weights are zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from nm2trt.errors import InputError
from nm2trt.library_errors import one_line
from nm2trt.onnx_tools.constants import resolve
from nm2trt.onnx_tools.lazy_file import raw_range
from nm2trt.onnx_tools.proto_graph import graph_nodes, inlined

Names = Literal["free", "ports", "all"]
"""No name matters; those of inputs and outputs, by which a network is fed; also those of operators and constants, by
which an engine knows its weights."""

_WEIGHT_INPUTS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (0, 1)}
_FLOATS = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
    onnx.TensorProto.DOUBLE: "fp64",
}


def read_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with its external data.

    Raises:
        InputError: Missing, no ONNX, or without a node.
    """
    hint = "name an ONNX file or a folder that `nm2trt export` wrote"
    if not path.is_file():
        raise InputError("no such file", where=path, hint=hint)
    try:
        model = onnx.load(path)
    except Exception as error:  # noqa: BLE001 -- protobuf's own errors pass through onnx
        raise InputError(f"is no readable ONNX ({one_line(error)})", where=path, hint=hint) from None
    if not model.graph.node or not model.graph.output:
        raise InputError("is no ONNX model: no operator in it", where=path, hint=hint)
    return model


def precision_of(model: onnx.ModelProto) -> str:
    """Name the types that the weights are computed in: "fp32", "fp16", ... or several joined by "+"."""
    found = {_FLOATS[tensor.data_type] for tensor in model.graph.initializer if tensor.data_type in _FLOATS}
    found |= {
        _FLOATS[value.type.tensor_type.elem_type]
        for value in model.graph.input
        if value.type.tensor_type.elem_type in _FLOATS
    }
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        found.add("int8")
    return "+".join(sorted(found)) or "unknown"


def weights(model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, NDArray[Any]]]:
    """Constant weights of convolutions and matrix products, bodies of loops and branches included, with their values.

    Args:
        model: With its data in it. Of one that calls its own functions the tensors are those of an inlined copy.

    Yields:
        The stored tensor, each once, found as `nm2trt.onnx_tools.constants.resolve` does; and its values as stored.

    Raises:
        InputError: A tensor's data contradict its shape.
    """
    seen: set[int] = set()
    for node in graph_nodes(model, Path()):
        for index in _WEIGHT_INPUTS.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ():
            found = resolve(node.inputs[index], Path()) if index < len(node.inputs) else None
            if found is None or len(found.tensor.shape) < 2 or id(found.tensor.proto) in seen:
                continue
            seen.add(id(found.tensor.proto))
            yield found.tensor.proto, numpy_helper.to_array(found.tensor.proto)


def zero_share(model: onnx.ModelProto) -> float:
    """Share of zeros among all weights, 0 to 1."""
    counts = [(int(values.size - np.count_nonzero(values)), int(values.size)) for _, values in weights(model)]
    total = sum(size for _, size in counts)
    return sum(zeros for zeros, _ in counts) / total if total else 0.0


def fill_pruned(model: onnx.ModelProto, *, seed: int) -> onnx.ModelProto:
    """Copy a network with every zero weight replaced by a draw from the same tensor's non-zeros.

    The result computes something else and is only good for timing: same graph, same shapes, dense values.
    """
    filled = onnx.ModelProto()
    filled.CopyFrom(inlined(model, Path()))
    rng = np.random.default_rng(seed)
    for tensor, values in weights(filled):
        zeros = values == 0
        kept = values[~zeros]
        if kept.size and zeros.any():
            values = values.copy()
            values[zeros] = rng.choice(kept, size=int(zeros.sum()))
            tensor.CopyFrom(numpy_helper.from_array(values, name=tensor.name))
    return filled


def check_same_graph(dense: onnx.ModelProto, sparse: onnx.ModelProto, *, where: str) -> None:
    """Hold two networks to the same operators, topology, attributes, and shapes and types of constants.

    Values of float and quantized constants may differ, and so may every name. Integer constants (`int64`) shape the
    computation, so their values must agree.

    Args:
        dense: One network.
        sparse: The other.
        where: Names the two, for the error.

    Raises:
        InputError: The precision differs, or the graphs do; the first difference is named.
    """
    precisions = precision_of(dense), precision_of(sparse)
    if precisions[0] != precisions[1]:
        raise InputError(
            f"the dense network is {precisions[0]}, the sparse one {precisions[1]}",
            where=where,
            hint="export both in one precision",
        )
    difference = find_difference(dense, sparse, words=("the dense network", "the sparse one"))
    if difference:
        raise InputError(
            f"not the same graph: {difference}", where=where, hint="export both from the same model with one exporter"
        )


def find_difference(
    one: onnx.ModelProto, other: onnx.ModelProto, *, words: tuple[str, str], names: Names = "free"
) -> str:
    """Hold two networks to the same operators in the same order, wiring, attributes, and shapes and types of constants.

    Args:
        one: A network; its weights need not have been read.
        other: Another one.
        words: What the two are called in the answer.
        names: Which names have to agree as well.

    Returns:
        The first difference in words; empty where there is none.
    """
    lines, others = (
        [*_port_lines(model.graph, names), *_canonical(model.graph, named=names == "all")] for model in (one, other)
    )
    for (place, mine), (_, theirs) in zip(lines, others, strict=False):
        if mine != theirs:
            return f"at {place} {words[0]} has {mine}, {words[1]} {theirs}"
    if len(lines) != len(others):
        return f"{words[0]} has {len(lines)} operators and ports, {words[1]} {len(others)}"
    return ""


def _port_lines(graph: onnx.GraphProto, names: Names) -> list[tuple[str, str]]:
    if names == "free":
        return []
    constants = {tensor.name for tensor in graph.initializer}
    ports = [("input", one) for one in graph.input if one.name not in constants]
    ports += [("output", one) for one in graph.output]
    return [(kind, f"{value.name} {_type(value)}") for kind, value in ports]


def _canonical(
    graph: onnx.GraphProto, outer: Mapping[str, str] | None = None, *, named: bool = False
) -> list[tuple[str, str]]:
    """Describe a graph line by line: (where, what); without its names, or with those of operators and constants."""
    names = dict(outer or {}, **{"": "nothing"})
    constants = {tensor.name: tensor for tensor in graph.initializer}
    lines = []
    inputs = [value for value in graph.input if value.name not in constants]
    for index, value in enumerate(inputs):
        names[value.name] = f"input {index}"
        lines.append((f"input {index}", _type(value)))
    for index, node in enumerate(graph.node):
        arguments: list[str] = []
        for name in node.input:
            if name not in names and name in constants:
                # Numbered by first use, so a constant that is shared stays told from two equal ones.
                own = f" {name}" if named else ""
                names[name] = f"constant {index}.{len(arguments)}{own} {_constant(constants[name])}"
            arguments.append(names.get(name, f"undefined {name}"))
        for position, name in enumerate(node.output):
            names[name] = f"operator {index}.{position}"
        attributes = ", ".join(sorted(_attribute(attribute, names, named=named) for attribute in node.attribute))
        domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
        own = f"{node.name}: " if named else ""
        lines.append((f"operator {index}", f"{own}{domain}{node.op_type}({'; '.join(arguments)})[{attributes}]"))
    for index, value in enumerate(graph.output):
        lines.append((f"output {index}", names.get(value.name, "a constant")))
    return lines


def _type(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    # A named dimension is free; its name is of no concern.
    shape = [str(dim.dim_value) if dim.HasField("dim_value") else "?" for dim in tensor.shape.dim]
    return f"{_dtype(tensor.elem_type)}[{','.join(shape)}]"


def _dtype(number: int) -> str:
    return str(onnx.helper.tensor_dtype_to_string(number)).removeprefix("TensorProto.").lower()


def _constant(tensor: onnx.TensorProto) -> str:
    shape = ",".join(map(str, tensor.dims))
    described = f"{_dtype(tensor.data_type)}[{shape}]"
    in_file = tensor.data_location == onnx.TensorProto.EXTERNAL or raw_range(tensor, Path()) is not None
    if tensor.data_type == onnx.TensorProto.INT64 and not in_file:
        described += f"={numpy_helper.to_array(tensor).ravel()[:16].tolist()}"
    return described


def _attribute(attribute: onnx.AttributeProto, names: Mapping[str, str], *, named: bool) -> str:
    if attribute.type == onnx.AttributeProto.TENSOR:
        return f"{attribute.name}={_constant(attribute.t)}"
    if attribute.type == onnx.AttributeProto.GRAPH:
        return f"{attribute.name}={_canonical(attribute.g, names, named=named)}"
    return f"{attribute.name}={onnx.helper.get_attribute_value(attribute)!r}"
