"""Every tensor's shape in a graph at one batch size: dynamic dimensions are filled in, never guessed.

Weights stay on disk (nm2trt.onnx_tools.lazy_file). onnx's own inference does the work; what it leaves open because a
shape is computed in the graph is folded with onnx's reference operators, and inferred again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from nm2trt.errors import ConfigError, InputError
from nm2trt.library_errors import one_line
from nm2trt.onnx_tools.lazy_file import raw_range, read_model
from nm2trt.onnx_tools.proto_graph import inlined
from nm2trt.onnx_tools.tensors import as_text

Shape = tuple[int, ...]

_ROUNDS = 8
"""Of inference and folding; each sees what the one before it made known."""
_SMALL = 1024
"""Elements; a tensor that holds a shape is far smaller, and nothing larger is worth computing here."""
_KEPT = ("QuantizeLinear", "DequantizeLinear")
"""They hold no shapes, and say that a small weight is quantized."""
_LARGEST_DIMENSION = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapedGraph:
    """The main graph of a model with what is known about its tensors."""

    path: Path
    nodes: tuple[onnx.NodeProto, ...]
    shapes: Mapping[str, Shape]
    """Fully known shapes by tensor name."""
    dtypes: Mapping[str, int]
    """onnx.TensorProto data types by tensor name."""
    constants: frozenset[str]
    """Tensors that no graph input reaches: weights, and what is computed from them alone."""
    inputs: Mapping[str, Shape]
    outputs: frozenset[str]
    notes: tuple[str, ...] = ()
    producers: Mapping[str, onnx.NodeProto] = field(default_factory=dict)

    def node_list(self) -> tuple[onnx.NodeProto, ...]:
        """In the graph's order."""
        return self.nodes

    def makers(self, name: str) -> list[onnx.NodeProto]:
        """The node that computes a tensor, if one does."""
        node = self.producers.get(name)
        return [] if node is None else [node]


def shaped_graph(
    path: Path, *, batch: int | None = None, shapes: Mapping[str, Sequence[int]] | None = None
) -> ShapedGraph:
    """Read a model and infer all shapes.

    Args:
        path: An ONNX file.
        batch: Value of every input's first dimension where that is dynamic.
        shapes: Whole shapes of inputs by name; a dimension of the same name elsewhere gets the same value.

    Raises:
        ConfigError: A dynamic dimension is left without a value, a value contradicts the file or another value, or a
            name is no input.
        InputError: The file is no ONNX model.
    """
    model = inlined(read_model(path), path)
    _fill_inputs(model.graph, path, batch, shapes or {})
    graph, known = _inferred(model, path)
    types = dict(_types(graph))
    bodies = sorted({node.op_type for node in graph.node if any(a.HasField("g") for a in node.attribute)})
    return ShapedGraph(
        path=path,
        nodes=tuple(graph.node),
        shapes={name: shape for name, (shape, _) in types.items() if shape is not None},
        dtypes={name: dtype for name, (_, dtype) in types.items()},
        constants=_constants(graph, known),
        inputs={value.name: types[value.name][0] or () for value in _real_inputs(graph)},
        outputs=frozenset(value.name for value in graph.output),
        notes=(f"bodies of {', '.join(bodies)} are not counted",) if bodies else (),
        producers={name: node for node in graph.node for name in node.output if name},
    )


def _real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    stored = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in stored]


def _fill_inputs(graph: onnx.GraphProto, path: Path, batch: int | None, shapes: Mapping[str, Sequence[int]]) -> None:
    inputs = {value.name: value for value in _real_inputs(graph)}
    for name in shapes:
        if name not in inputs:
            known = ", ".join(map(as_text, inputs)) or "none"
            raise ConfigError(f"--shape {as_text(name)}: no such input", where=path, hint=f"its inputs: {known}")
    if batch is not None and not 1 <= batch <= _LARGEST_DIMENSION:
        raise ConfigError(f"--batch {batch} is no batch size", hint="use a positive number")
    named: dict[str, int] = {}
    for name, value in inputs.items():
        dims = value.type.tensor_type.shape.dim
        given: list[int | None] = list(shapes.get(name, ())) or [None] * len(dims)
        if len(given) != len(dims):
            raise ConfigError(
                f"--shape {as_text(name)}: {len(given)} dimensions, but the input has {len(dims)}",
                where=path,
            )
        if dims and given[0] is None and (_dynamic(dims[0]) or batch is not None):
            given[0] = batch
        for index, (dim, size) in enumerate(zip(dims, given, strict=True)):
            _set_dim(dim, size, f"dimension {index} of input {as_text(name)}", path, named)
    _fill_by_name(inputs, named)
    _refuse_open(inputs, path)


def _dynamic(dim: onnx.TensorShapeProto.Dimension) -> bool:
    return not dim.HasField("dim_value") or dim.dim_value <= 0


def _set_dim(
    dim: onnx.TensorShapeProto.Dimension, size: int | None, what: str, path: Path, named: dict[str, int]
) -> None:
    if size is None:
        return
    if not 1 <= size <= _LARGEST_DIMENSION:
        raise ConfigError(f"{what}: {size} is no size", where=path, hint="use positive numbers")
    if not _dynamic(dim):
        if dim.dim_value != size:
            raise ConfigError(
                f"{what} is fixed at {dim.dim_value}, not {size}",
                where=path,
                hint="use that value, or export with a dynamic dimension",
            )
        return
    label = dim.dim_param
    if label and named.setdefault(label, size) != size:
        raise ConfigError(f"{what} ({as_text(label)!r}) is {size} here and {named[label]} elsewhere", where=path)
    dim.dim_value = size


def _fill_by_name(inputs: Mapping[str, onnx.ValueInfoProto], named: Mapping[str, int]) -> None:
    for value in inputs.values():
        for dim in value.type.tensor_type.shape.dim:
            if _dynamic(dim) and dim.dim_param in named:
                dim.dim_value = named[dim.dim_param]


def _refuse_open(inputs: Mapping[str, onnx.ValueInfoProto], path: Path) -> None:
    hints, first_only = [], True
    for name, value in inputs.items():
        if not value.type.tensor_type.HasField("shape"):
            raise ConfigError(f"input {as_text(name)} has no shape in the file", where=path, hint="export it again")
        dims = value.type.tensor_type.shape.dim
        unknown = [index for index, dim in enumerate(dims) if _dynamic(dim)]
        if unknown:
            first_only = first_only and unknown == [0]
            sizes = "x".join(as_text(d.dim_param or "?") if _dynamic(d) else str(d.dim_value) for d in dims)
            hints.append(f"{as_text(name)}={sizes}")
    if hints:
        hint = "give --batch N" if first_only else "give --batch N and --shape NAME=DIMS with numbers"
        raise ConfigError(f"dynamic dimensions without a value: {', '.join(hints)}", where=path, hint=hint)


def _inferred(model: onnx.ModelProto, path: Path) -> tuple[onnx.GraphProto, dict[str, np.ndarray[Any, Any]]]:
    """Infer, fold what computes shapes, and repeat until nothing new comes out."""
    known = dict(_small_initializers(model.graph, path))
    # What the exporter noted was for dynamic dimensions.
    del model.graph.value_info[:]
    for value in model.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    graph = model.graph
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    # Before version 4, what is folded below would have to be an input as well.
    model.ir_version = max(model.ir_version, 4)
    for _ in range(_ROUNDS):
        try:
            graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        except Exception as error:  # noqa: BLE001 -- whatever a broken graph makes the library raise
            raise InputError(
                f"shapes cannot be inferred: {one_line(error)}", where=path, hint="check it with onnx.checker"
            ) from None
        folded = _fold(graph, known, opsets)
        if not folded:
            break
        _replace(model.graph, folded)
    return graph, known


def _small_initializers(graph: onnx.GraphProto, path: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    for tensor in graph.initializer:
        inside = raw_range(tensor, path) is None and tensor.data_location != onnx.TensorProto.EXTERNAL
        if inside and np.prod(tensor.dims, dtype=np.float64) <= _SMALL:
            try:
                yield tensor.name, numpy_helper.to_array(tensor)
            except Exception:  # noqa: BLE001, S112 -- a broken small tensor is nobody's shape
                continue


def _fold(
    graph: onnx.GraphProto, known: dict[str, np.ndarray[Any, Any]], opsets: dict[str, int]
) -> dict[str, np.ndarray[Any, Any]]:
    types = dict(_types(graph))
    new: dict[str, np.ndarray[Any, Any]] = {}
    for node in graph.node:
        if not node.output or node.output[0] in known or node.domain not in ("", "ai.onnx"):
            continue
        if any(attribute.HasField("g") for attribute in node.attribute) or node.op_type in _KEPT:
            continue
        if node.op_type == "Shape":
            shape = types.get(node.input[0], (None, 0))[0]
            results: list[Any] | None = None if shape is None else [_shape_of(node, shape)]
        elif all(name in known for name in node.input if name) and (node.input or node.op_type == "Constant"):
            results = _evaluate(node, known, types, opsets)
        else:
            continue
        for name, result in zip(node.output, results or (), strict=False):
            if isinstance(result, np.ndarray) and result.size <= _SMALL:
                known[name] = new[name] = result
    return new


def _shape_of(node: onnx.NodeProto, shape: Shape) -> np.ndarray[Any, Any]:
    ends = {attribute.name: attribute.i for attribute in node.attribute}
    return np.array(shape[ends.get("start", 0) : ends.get("end", len(shape))], dtype=np.int64)


def _evaluate(
    node: onnx.NodeProto,
    known: Mapping[str, np.ndarray[Any, Any]],
    types: Mapping[str, tuple[Shape | None, int]],
    opsets: dict[str, int],
) -> list[Any] | None:
    from onnx.reference import ReferenceEvaluator

    sizes = [types.get(name, (None, 0))[0] for name in node.output]
    if any(size is not None and np.prod(size, dtype=np.float64) > _SMALL for size in sizes):
        return None
    if None in sizes and _may_grow(node, known):
        return None
    try:
        result: Any = ReferenceEvaluator(node, opsets=opsets).run(
            None, {name: known[name] for name in node.input if name}
        )
    except Exception:  # noqa: BLE001 -- an operator that onnx has no reference for stays unknown
        return None
    return [np.asarray(value) for value in result]


def _may_grow(node: onnx.NodeProto, known: Mapping[str, np.ndarray[Any, Any]]) -> bool:
    """Whether small inputs ask for a large output."""
    if node.op_type == "Range":
        start, limit, delta = (float(known[name].reshape(-1)[0]) for name in node.input[:3])
        return not delta or (limit - start) / delta > _SMALL
    if node.op_type == "ConstantOfShape":
        return bool(np.prod(known[node.input[0]], dtype=np.float64) > _SMALL)
    # The next round of inference names its size.
    return node.op_type in ("Expand", "Tile", "RandomNormal", "RandomUniform", "Pad", "Resize", "OneHot")


def _replace(graph: onnx.GraphProto, folded: Mapping[str, np.ndarray[Any, Any]]) -> None:
    kept = [node for node in graph.node if not (node.output and all(name in folded for name in node.output if name))]
    made = {name for node in kept for name in node.output}
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, order="C"), name)
        for name, value in folded.items()
        if name not in made
    )


def _types(graph: onnx.GraphProto) -> Iterator[tuple[str, tuple[Shape | None, int]]]:
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        whole = tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
        yield value.name, (tuple(dim.dim_value for dim in dims) if whole else None, tensor.elem_type)
    for initializer in graph.initializer:
        yield initializer.name, (tuple(initializer.dims), initializer.data_type)


def _constants(graph: onnx.GraphProto, known: Mapping[str, Any]) -> frozenset[str]:
    constant = {tensor.name for tensor in graph.initializer} | set(known)
    for node in graph.node:
        bodies = any(attribute.HasField("g") for attribute in node.attribute)
        if not bodies and all(name in constant for name in node.input if name):
            constant.update(name for name in node.output if name)
    return frozenset(constant)
