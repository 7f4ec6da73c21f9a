"""Weights of an ONNX graph: constants behind layout, cast and quantization nodes, with the steps to their values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import ml_dtypes
import numpy as np

from nm2trt.errors import InputError
from nm2trt.library_errors import one_line
from nm2trt.onnx_tools.proto_graph import Node, Value
from nm2trt.onnx_tools.tensors import (
    UNREADABLE,
    Array,
    StoredConstant,
    as_text,
    check_tensor,
    load_tensor,
    numpy_dtype,
)

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["UNREADABLE", "Constant", "as_text", "load_tensor", "one_line", "resolve"]

AnyTensor: TypeAlias = "ir.TensorProtocol | StoredConstant"
AnyValue: TypeAlias = "ir.Value | Value"
AnyNode: TypeAlias = "ir.Node | Node"
"""Readers walk the graph as it is stored (onnx_graph.py), writers through onnx-ir; the rules are the same."""

_DEFAULT_DOMAINS = ("", "ai.onnx")
_PARAMETER_STEPS = ("Identity", "Cast")


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant as an operator sees it. Values are computed only when asked for."""

    name: str
    tensor: Any
    """A StoredConstant, or onnx-ir's tensor where the graph was opened to be written."""
    where: Path
    shape: tuple[int, ...]
    """After all steps."""
    stored_dtype: str
    graph_dtype: str
    """Where the operator reads it; of a quantized tensor the quantized type."""
    quantized: bool = False
    zero_point: bool = False
    steps: tuple[Callable[[Array], Array], ...] = ()
    layout: tuple[Callable[[Array], Array], ...] = ()
    """Those of the steps that only move values: applied to stored positions, they tell where each value came from."""

    @property
    def in_ranges(self) -> bool:
        """Whether `value_range` works: the data lie in a file, and no step changes values or their order."""
        return (
            isinstance(self.tensor, StoredConstant)
            and self.tensor.in_ranges
            and all(isinstance(step, _Reshaped) for step in self.steps)
        )

    def value_range(self, start: int, stop: int) -> Array:
        """Values `start` to before `stop`, in memory order and flat; errors as `value`."""
        return np.asarray(self.tensor.load_range(start, stop))

    def value(self) -> Array:
        """Load the tensor and apply the steps.

        Raises:
            InputError: The stored data do not fit the shape, or lie outside the model's folder.
        """
        array = load_tensor(self.tensor, self.where)
        try:
            for step in self.steps:
                array = step(array)
        except UNREADABLE as error:
            raise InputError(f"tensor {self.name!r}: {one_line(error)}", where=self.where) from None
        return array


def resolve(value: AnyValue | None, where: Path, *, parameter: bool = False) -> Constant | None:
    """Follow a value up to the constant it comes from.

    Understands initializers and Constant nodes behind Identity, Cast, Transpose, Reshape, Squeeze, Unsqueeze,
    QuantizeLinear and DequantizeLinear.

    Args:
        value: What an operator reads.
        where: The model's path.
        parameter: The value parametrizes such a node (a shape, a scale). Only Identity and Cast are followed then,
            which have no parameters themselves, so that a cyclic graph cannot lead round for ever.

    Returns:
        None when the value is computed from something else.

    Raises:
        InputError: A constant's data contradict its shape.
    """
    trail: list[AnyNode] = []
    while value is not None and _tensor_of(value) is None:
        node = value.producer()
        if node is None or node.domain not in _DEFAULT_DOMAINS or node in trail:
            return None
        if node.op_type not in (_PARAMETER_STEPS if parameter else _STEPS):
            return None
        trail.append(node)
        value = node.inputs[0] if node.inputs else None
    if value is None:
        return None
    tensor = _tensor_of(value)
    assert tensor is not None
    check_tensor(tensor, where)
    dtype = _dtype_name(tensor)
    constant: Constant | None = Constant(
        name=as_text(value.name or tensor.name or ""),
        tensor=tensor,
        where=where,
        shape=_shape_of(tensor),
        stored_dtype=dtype,
        graph_dtype=dtype,
    )
    for node in reversed(trail):
        if constant is None:
            return None
        constant = _STEPS[node.op_type](node, constant)
    return constant


def _tensor_of(value: AnyValue) -> AnyTensor | None:
    if isinstance(value, Value):
        return value.tensor if value.tensor is not None and value.tensor.known else None
    import onnx_ir as ir

    try:
        tensor = ir.convenience.get_const_tensor(value)
    except (ValueError, TypeError):
        return None
    return None if tensor is None or tensor.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED) else tensor


def _shape_of(tensor: AnyTensor) -> tuple[int, ...]:
    if isinstance(tensor, StoredConstant):
        return tensor.shape
    return tuple(int(size) for size in tensor.shape.numpy())


def _dtype_name(tensor: AnyTensor) -> str:
    dtype = tensor.dtype if isinstance(tensor, StoredConstant) else np.dtype(tensor.dtype.numpy())
    return str(dtype.name)


# One function per node type: how it changes a constant, or None where that is not clear

_Step = Callable[[AnyNode, Constant], "Constant | None"]


def _identity(_node: AnyNode, constant: Constant) -> Constant:
    return constant


def _cast(node: AnyNode, constant: Constant) -> Constant | None:
    attribute = node.attributes.get("to")
    if attribute is None:
        return None
    target = numpy_dtype(attribute.as_int())
    graph_dtype = constant.graph_dtype if constant.quantized else target.name
    return replace(
        constant, graph_dtype=graph_dtype, steps=(*constant.steps, lambda array: _quietly(array.astype, target))
    )


def _transpose(node: AnyNode, constant: Constant) -> Constant | None:
    rank = len(constant.shape)
    attribute = node.attributes.get("perm")
    perm = tuple(attribute.as_ints()) if attribute is not None else tuple(reversed(range(rank)))
    if sorted(perm) != list(range(rank)):
        return None
    shape = tuple(constant.shape[axis] for axis in perm)
    return _moved(constant, shape, lambda array: array.transpose(perm))


def _reshape(node: AnyNode, constant: Constant) -> Constant | None:
    wanted = _small_ints(node, 1, constant.where)
    if wanted is None:
        return None
    allow_zero = "allowzero" in node.attributes and node.attributes["allowzero"].as_int() == 1
    if not allow_zero:
        if any(size == 0 and index >= len(constant.shape) for index, size in enumerate(wanted)):
            return None
        wanted = [constant.shape[index] if size == 0 else size for index, size in enumerate(wanted)]
    count, known = math.prod(constant.shape), math.prod(size for size in wanted if size != -1)
    if wanted.count(-1) == 1 and known > 0:
        wanted = [count // known if size == -1 else size for size in wanted]
    return _with_shape(constant, tuple(wanted))


def _squeeze(node: AnyNode, constant: Constant) -> Constant | None:
    axes = _axes(node, constant)
    rank = len(constant.shape)
    gone = {axis % rank for axis in axes} if axes is not None else {i for i, n in enumerate(constant.shape) if n == 1}
    return _with_shape(constant, tuple(size for axis, size in enumerate(constant.shape) if axis not in gone))


def _unsqueeze(node: AnyNode, constant: Constant) -> Constant | None:
    axes = _axes(node, constant)
    if axes is None:
        return None
    rank = len(constant.shape) + len(axes)
    new = {axis % rank for axis in axes}
    old = iter(constant.shape)
    if len(new) != len(axes):
        return None
    return _with_shape(constant, tuple(1 if axis in new else next(old) for axis in range(rank)))


def _with_shape(constant: Constant, shape: tuple[int, ...]) -> Constant | None:
    if any(size < 0 for size in shape) or math.prod(shape) != math.prod(constant.shape):
        return None
    return _moved(constant, shape, _Reshaped(shape))


@dataclass(frozen=True, slots=True)
class _Reshaped:
    """The one step that leaves values where they are in memory."""

    shape: tuple[int, ...]

    def __call__(self, array: Array) -> Array:
        return array.reshape(self.shape)


def _moved(constant: Constant, shape: tuple[int, ...], step: Callable[[Array], Array]) -> Constant:
    return replace(constant, shape=shape, steps=(*constant.steps, step), layout=(*constant.layout, step))


def _quantize(node: AnyNode, constant: Constant) -> Constant | None:
    scale = _small(node, 1, constant.where)
    zero = _small(node, 2, constant.where)
    if scale is None or (zero is None and _has_input(node, 2)):
        return None
    attribute = node.attributes.get("output_dtype")
    if zero is not None:
        dtype = zero.dtype
    elif attribute is not None and attribute.as_int():
        dtype = numpy_dtype(attribute.as_int())
    else:
        dtype = np.dtype(np.uint8)
    scale_wide = _spread(scale.astype(np.float32), node, constant.shape)
    zero_wide = None if zero is None else _spread(zero.astype(np.float32), node, constant.shape)
    if scale_wide is None or (zero is not None and zero_wide is None):
        return None

    def step(array: Array) -> Array:
        scaled = _quietly(np.divide, array.astype(np.float32), scale_wide)
        if dtype.name.startswith("float"):
            return _quietly(scaled.astype, dtype)
        limits = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
        stored = np.rint(scaled) + (0 if zero_wide is None else zero_wide)
        return _quietly(np.clip(stored, limits.min, limits.max).astype, np.int32)

    return replace(constant, graph_dtype=dtype.name, quantized=True, steps=(*constant.steps, step))


def _dequantize(node: AnyNode, constant: Constant) -> Constant | None:
    zero = _small(node, 2, constant.where)
    if zero is None and _has_input(node, 2):
        return None
    if zero is None or not np.any(zero.astype(np.float32)):
        return replace(constant, quantized=True)
    zero_wide = _spread(zero.astype(np.int32), node, constant.shape)
    if zero_wide is None:
        return None
    return replace(
        constant,
        quantized=True,
        zero_point=True,
        steps=(*constant.steps, lambda array: array.astype(np.int32) - zero_wide),
    )


_STEPS: dict[str, _Step] = {
    "Identity": _identity,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}


def _spread(parameter: Array, node: AnyNode, shape: tuple[int, ...]) -> Array | None:
    """Bring a scale or zero point into a shape that broadcasts: per tensor, per axis, or blocked (ONNX opset 21)."""
    if parameter.size == 1:
        return parameter.reshape(())
    rank = len(shape)
    axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 1) % max(rank, 1)
    if parameter.ndim == 1 and parameter.size == shape[axis]:
        return parameter.reshape([-1 if index == axis else 1 for index in range(rank)])
    block = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
    if block <= 0 or parameter.ndim != rank:
        return None
    wide = np.repeat(parameter, min(block, shape[axis]), axis=axis)
    wide = wide[(slice(None),) * axis + (slice(shape[axis]),)]
    return wide if wide.shape == shape else None


def _has_input(node: AnyNode, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


def _small(node: AnyNode, index: int, where: Path) -> Array | None:
    """Value of a constant parameter input."""
    if not _has_input(node, index):
        return None
    constant = resolve(node.inputs[index], where, parameter=True)
    return None if constant is None else constant.value()


def _small_ints(node: AnyNode, index: int, where: Path) -> list[int] | None:
    array = _small(node, index, where)
    return None if array is None else [int(size) for size in array.reshape(-1)]


def _axes(node: AnyNode, constant: Constant) -> list[int] | None:
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    return _small_ints(node, 1, constant.where)


def _quietly(function: Callable[..., Array], *arguments: Any) -> Array:
    """Run a conversion that may overflow to infinity, which verify then reports."""
    with np.errstate(all="ignore"):
        return function(*arguments)
