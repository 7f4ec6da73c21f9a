"""Write weights into an ONNX file: tensors keep the form in which they are stored, the graph is not touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from nm2trt.errors import InputError
from nm2trt.layers import LayerWeight
from nm2trt.layers.onnx_reader import OpenGraph, open_graph, weight_use
from nm2trt.onnx_tools.constants import Constant, as_text, load_tensor
from nm2trt.onnx_tools.tensor_protos import tensor_protos
from nm2trt.prune.permutation.classifiers import classifier_nodes
from nm2trt.prune.writers.stored import Array, StoredWeight

_DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_WEIGHT_READERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LAYOUT = ("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "QuantizeLinear", "DequantizeLinear")


class OnnxFile:
    """Open a copy of an ONNX file, its external data beside it; errors as `nm2trt.layers.open_source`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.graph: OpenGraph = open_graph(path)
        values = _constant_values(self.graph.model)
        weights = self.graph.weights()
        classifiers = _classifiers(self.graph.model, weights, path)
        self.weights = [
            StoredWeight(
                layer=layer,
                key=tensor_key(constant.tensor),
                read=partial(load_tensor, constant.tensor, path),
                write=partial(write_tensor, constant.tensor),
                layout=constant.layout,
                dense_unless_named=_foreign_reader(values.get(tensor_key(constant.tensor), []))
                or classifiers.get(tensor_key(constant.tensor), ""),
                refused=unwritable(constant.tensor),
            )
            for layer, constant in weights
        ]

    def write_others(self, values: Mapping[str, Array]) -> None:
        """Replace constants by name.

        Raises:
            InputError: One is stored in a form that cannot be written.
        """
        for value in constant_values(self.graph.model):
            tensor = ir.convenience.get_const_tensor(value) if value.name in values else None
            if tensor is not None:
                write_tensor(tensor, values[str(value.name)])

    def save(self) -> None:
        """Write the file as it was, with the embedded data of its tensors replaced; external data were written before.

        The graph that was edited shares its tensors with onnx-ir, which renames those of inlined functions.
        """
        fresh = onnx.load(str(self._path), format="protobuf", load_external_data=False)
        for tensor, edited in zip(tensor_protos(fresh), tensor_protos(self.graph.proto), strict=True):
            for field in _DATA_FIELDS:
                if field == "raw_data":
                    if edited.HasField(field):
                        tensor.raw_data = edited.raw_data
                elif len(getattr(edited, field)):
                    tensor.ClearField(field)
                    getattr(tensor, field).extend(getattr(edited, field))
        self._path.write_bytes(fresh.SerializeToString(deterministic=True))


def tensor_key(tensor: ir.TensorProtocol) -> object:
    """Equal for tensors that share their stored bytes."""
    if isinstance(tensor, ir.ExternalTensor):
        return str(tensor.path), tensor.offset or 0
    return id(tensor)


def unwritable(tensor: ir.TensorProtocol) -> str:
    """Why a tensor cannot be written; empty where it can."""
    if isinstance(tensor, ir.ExternalTensor | ir.serde.TensorProtoTensor):
        return ""
    return "stored as a list in a Constant node's attribute, not as a tensor"


def write_tensor(tensor: ir.TensorProtocol, array: Array) -> None:
    """Replace a tensor's values in the form in which they are stored.

    Args:
        tensor: External, or a view of a TensorProto.
        array: Same shape and type.

    Raises:
        InputError: The tensor is stored in a form that cannot be written.
    """
    if reason := unwritable(tensor):
        raise InputError(reason, where=f"tensor {tensor.name!r}", hint="export the model again")
    little = np.ascontiguousarray(array)
    if isinstance(tensor, ir.ExternalTensor):
        with Path(tensor.path).open("r+b") as file:
            file.seek(tensor.offset or 0)
            file.write(little.tobytes())
        return
    proto = _proto_of(tensor)
    if proto.HasField("raw_data"):
        proto.raw_data = little.tobytes()
        return
    name, items = _typed_items(little)
    field = getattr(proto, name)
    del field[:]
    field.extend(items)


def _proto_of(tensor: Any) -> onnx.TensorProto:
    proto: onnx.TensorProto = tensor.raw
    return proto


def _typed_items(array: Array) -> tuple[str, list[Any]]:
    """Field of a TensorProto for this type, and the values as that field takes them (onnx.proto, TensorProto)."""
    flat = array.reshape(-1)
    if flat.dtype == np.float32:
        return "float_data", flat.tolist()
    if flat.dtype == np.float64:
        return "double_data", flat.tolist()
    if flat.dtype.itemsize == 2 and flat.dtype.kind not in "iu":
        return "int32_data", flat.view(np.uint16).tolist()
    if flat.dtype == np.int64:
        return "int64_data", flat.tolist()
    if flat.dtype.kind in "iu" and flat.dtype.itemsize <= 4:
        return ("uint64_data" if flat.dtype == np.uint32 else "int32_data"), flat.tolist()
    raise InputError(f"values of type {flat.dtype.name} in a typed field cannot be written", where="ONNX tensor")


# Who else reads a weight, and what makes the logits


def _constant_values(model: ir.Model) -> dict[object, list[ir.Value]]:
    found: dict[object, list[ir.Value]] = {}
    for value in constant_values(model):
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            found.setdefault(tensor_key(tensor), []).append(value)
    return found


def constant_values(model: ir.Model) -> Iterator[ir.Value]:
    """Initializers and outputs of Constant nodes, subgraphs included."""
    graphs = [model.graph]
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "Constant" and node.outputs and "sparse_value" not in node.attributes:
            yield node.outputs[0]
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                graphs.append(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                graphs.extend(attribute.as_graphs())
    for graph in graphs:
        yield from graph.initializers.values()


def _foreign_reader(values: list[ir.Value]) -> str:
    """Name a reader that is no matrix product; pruning would change what it computes, too."""
    pending, seen = list(values), set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.is_graph_output():
            return "is also a graph output"
        for node, _ in value.uses():
            if node.op_type in _LAYOUT:
                pending.extend(node.outputs)
            elif node.op_type not in _WEIGHT_READERS:
                return f"is also read by {node.op_type} {as_text(node.name or '')!r}"
    return ""


def _classifiers(model: ir.Model, weights: list[tuple[LayerWeight, Constant]], path: Path) -> dict[object, str]:
    """Tensor -> the reason to leave it dense, of those that make the scores."""
    prunable = [layer for layer, _ in weights if layer.reduction_axis is not None and not layer.why_not]
    if len(prunable) < 2:
        return {}
    keys: dict[ir.Node, object] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        use = weight_use(node, path)
        if use is not None:
            keys[node] = tensor_key(use.constant.tensor)
    return {keys[node]: reason for node, reason in classifier_nodes(model, keys).items()}
