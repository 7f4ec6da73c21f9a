"""Layers of an ONNX file: operators are known here, so the reduction axis is a fact and not a guess."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from nm2trt.errors import InputError
from nm2trt.layers.metadata import METHOD_KEY, claimed_patterns
from nm2trt.layers.onnx_unread import UnreadConstant, node_name, unread_constants
from nm2trt.layers.stream import LayerSource, LayerWeight, Op
from nm2trt.onnx_tools.constants import UNREADABLE, AnyNode, Constant, as_text, one_line, resolve
from nm2trt.onnx_tools.lazy_file import read_model
from nm2trt.onnx_tools.proto_graph import graph_nodes
from nm2trt.onnx_tools.tensor_protos import tensor_protos
from nm2trt.onnx_tools.tensors import find_external_file
from nm2trt.reasons import Reason

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


@dataclass(slots=True)
class _Use:
    constant: Constant
    op: Op
    axis: int | None
    groups: int = 1
    reason: Reason | None = None
    nodes: list[str] = field(default_factory=list)

    def key(self) -> tuple[object, ...]:
        constant = self.constant
        return id(constant.tensor), self.op, self.axis, self.groups, constant.shape, constant.graph_dtype


def open_onnx(path: Path) -> LayerSource:
    """Open an ONNX file; external data stay on disk until a layer's values are asked for.

    Raises:
        InputError: The file is missing, no ONNX, larger than protobuf's 2 GiB, or cannot be understood; a tensor's
            data contradict its shape; external data are missing or outside the model's folder.
    """
    model = read_model(path)
    nodes = list(graph_nodes(model, path))
    uses = _uses(nodes, path)
    unread = list(unread_constants(nodes, path, weight_use))
    metadata = {as_text(entry.key): as_text(entry.value) for entry in model.metadata_props}
    return LayerSource(
        path=path,
        kind="onnx",
        layers=partial(_stream, uses, unread),
        patterns=claimed_patterns(metadata, path),
        method=metadata.get(METHOD_KEY),
    )


@dataclass(frozen=True, slots=True)
class OpenGraph:
    """An ONNX file for those who write into it: embedded tensors of `model` are views of those in `proto`."""

    proto: onnx.ModelProto
    model: ir.Model
    """Functions inlined; external data stay on disk."""
    uses: list[_Use]

    def weights(self) -> list[tuple[LayerWeight, Constant]]:
        """Every layer with the constant behind it."""
        return [(_layer(use), use.constant) for use in self.uses]


def open_graph(path: Path) -> OpenGraph:
    """Open an ONNX file to edit it; errors as `open_onnx`."""
    import onnx_ir as ir

    proto, model = _load_to_edit(path)
    return OpenGraph(proto, model, _uses(ir.traversal.RecursiveGraphIterator(model.graph), path))


def _stream(uses: list[_Use], unread: list[UnreadConstant]) -> Iterator[LayerWeight]:
    for use in uses:
        yield _layer(use)
    for found in unread:
        yield _unread_layer(found)


def _unread_layer(found: UnreadConstant) -> LayerWeight:
    def refuse() -> NoReturn:
        raise InputError(found.reason.words(), where=f"tensor {found.name!r}")

    return LayerWeight(
        name=found.name,
        op="other",
        shape=found.shape,
        dtype=found.dtype,
        reduction_axis=None,
        weight=refuse,
        reason=found.reason,
        not_checked=found.reason.code != "embedding",
        node=found.node,
        graph_dtype=found.dtype,
    )


def _layer(use: _Use) -> LayerWeight:
    constant = use.constant
    return LayerWeight(
        name=constant.name,
        op=use.op,
        shape=constant.shape,
        dtype=constant.stored_dtype,
        reduction_axis=use.axis,
        weight=constant.value,
        load_range=constant.value_range if constant.in_ranges else None,
        groups=use.groups,
        reason=use.reason,
        zero_point=constant.zero_point,
        node=", ".join(use.nodes),
        graph_dtype=constant.graph_dtype,
    )


def external_files(path: Path) -> list[Path]:
    """List the files that a model keeps weights in, each once.

    Raises:
        InputError: It is no model, or a file is named absolutely, missing or outside the model's folder.
    """
    locations = [
        entry.value for tensor in tensor_protos(read_model(path)) for entry in tensor.external_data
        if entry.key == "location"
    ]  # fmt: skip
    return list(dict.fromkeys(find_external_file(location, path) for location in locations))


def _load_to_edit(path: Path) -> tuple[onnx.ModelProto, ir.Model]:
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes.common import InlinePass

    # Says whether it is a model at all.
    read_model(path)
    proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    # The library logs what it makes of a broken graph; the user gets one line.
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        model = ir.from_proto(proto)
        # An empty folder name would switch the library's own checks off.
        ir.external_data.set_base_dir(model.graph, str(path.parent.resolve()))
        if model.functions:
            InlinePass()(model)
    except Exception as error:  # noqa: BLE001 -- whatever a broken graph makes the library raise
        raise InputError(
            f"is no valid ONNX model: {one_line(error)}", where=path, hint="check it with onnx.checker"
        ) from None
    finally:
        logger.setLevel(level)
    return proto, model


def _uses(nodes: Iterable[AnyNode], path: Path) -> list[_Use]:
    """Every weight once for each way in which it is used; nodes that share it are listed together."""
    found: dict[tuple[object, ...], _Use] = {}
    for node in nodes:
        use = weight_use(node, path)
        if use is not None:
            kept = found.setdefault(use.key(), use)
            kept.nodes.append(node_name(node))
    return list(found.values())


def weight_use(node: AnyNode, path: Path) -> _Use | None:
    """How an operator uses a constant weight; None where it is no matrix product with one.

    Raises:
        InputError: Its attributes or its weight's shape make no sense.
    """
    reader = _READERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    try:
        return reader(node, path) if reader is not None else None
    except UNREADABLE as error:
        raise InputError(f"node {node.name!r} ({node.op_type}): {one_line(error)}", where=path) from None


def _input(node: AnyNode, index: int, path: Path) -> Constant | None:
    return resolve(node.inputs[index], path) if index < len(node.inputs) else None


def _int(node: AnyNode, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _conv(node: AnyNode, path: Path) -> _Use | None:
    weight = _input(node, 1, path)
    if weight is None or len(weight.shape) < 3:
        return None
    groups = _int(node, "group", 1)
    if groups > 1 and weight.shape[1] == 1:
        return _Use(weight, "conv", None, groups, Reason("depthwise-groups"))
    return _Use(weight, "conv", 1, groups)


def _conv_transpose(node: AnyNode, path: Path) -> _Use | None:
    weight = _input(node, 1, path)
    if weight is None or len(weight.shape) < 3:
        return None
    groups = _int(node, "group", 1)
    if groups > 1 and weight.shape[0] == groups:
        return _Use(weight, "conv-transpose", None, groups, Reason("depthwise-groups"))
    return _Use(weight, "conv-transpose", 0, groups)


def _gemm(node: AnyNode, path: Path) -> _Use | None:
    b = _input(node, 1, path)
    if b is not None and len(b.shape) == 2:
        return _Use(b, "gemm", 1 if _int(node, "transB", 0) else 0)
    a = _input(node, 0, path)
    if a is not None and len(a.shape) == 2:
        return _Use(a, "gemm", 0 if _int(node, "transA", 0) else 1)
    return None


def _matmul(node: AnyNode, path: Path) -> _Use | None:
    # numpy.matmul's rule: a is [..., M, K], b is [..., K, N].
    for index, axis_from_end in ((1, 2), (0, 1)):
        weight = _input(node, index, path)
        if weight is not None:
            rank = len(weight.shape)
            if rank < 2:
                return _Use(weight, "matmul", None, reason=Reason("vector-operand"))
            return _Use(weight, "matmul", rank - axis_from_end)
    return None


_READERS: dict[str, Callable[[AnyNode, Path], _Use | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
