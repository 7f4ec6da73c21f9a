"""Constants that operators multiply by, but whose operators are not read: named, so that none is passed over.

An operator with a rule in onnx_reader.py is read. Here are all others: recurrent ones, Einsum, operators of integers,
ONNX Runtime's fused ones, operators of domains that nobody knows; and operators with a rule whose weight is no plain
constant (computed from constants, stored sparse, passed into a loop's body).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nm2trt.onnx_tools.constants import AnyNode, resolve
from nm2trt.onnx_tools.tensors import as_text
from nm2trt.reasons import Reason, ReasonCode

if TYPE_CHECKING:
    from nm2trt.onnx_tools.proto_graph import Node, Value

_DEFAULT = ("", "ai.onnx")
_READ = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1, 0), "MatMul": (1, 0)}
"""Operators that are read, and which inputs may be their weights."""
_MULTIPLIES: dict[str, tuple[ReasonCode, tuple[int, ...] | None]] = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), ("recurrent", (1, 2))),
    "Einsum": ("einsum", None),
    "DeformConv": ("deformable", (1,)),
    "QLinearConv": ("quantized-operator", (3,)),
    "QLinearMatMul": ("quantized-operator", (0, 3)),
    **dict.fromkeys(("MatMulInteger", "ConvInteger"), ("quantized-operator", (0, 1))),
    "Attention": ("attention-operator", (0, 1, 2)),
}
"""Of the default domain: why they are not read, and which inputs they multiply; None: all."""
_CONTRIB: dict[str, tuple[ReasonCode, tuple[int, ...] | None]] = {
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4", "MatMulFpQ4"), ("packed-operator", (1,))),
    "QMoE": ("packed-operator", (2, 5, 8)),
    "MoE": ("runtime-operator", (2, 4, 6)),
    **dict.fromkeys(("Attention", "QAttention", "PackedAttention"), ("attention-operator", (1,))),
    "LongformerAttention": ("attention-operator", (1, 4)),
    **dict.fromkeys(("DecoderAttention", "MultiHeadAttention", "GroupQueryAttention"), ("attention-operator", None)),
    "DynamicQuantizeLSTM": ("recurrent", (1, 2)),
    "DynamicQuantizeMatMul": ("quantized-operator", (1,)),
    **dict.fromkeys(("MatMulIntegerToFloat", "MatMulInteger16"), ("quantized-operator", (0, 1))),
    **dict.fromkeys(("QGemm", "QLinearConv", "QLinearConvTranspose"), ("quantized-operator", (0, 3))),
    **dict.fromkeys(
        ("FusedConv", "NhwcConv", "NhwcFusedConv", "ConvTransposeWithDynamicPads"), ("runtime-operator", (1,))
    ),
    **dict.fromkeys(("FusedMatMul", "FusedGemm", "GemmFloat8", "GemmFastGelu"), ("runtime-operator", (0, 1))),
    "FusedMatMulActivation": ("runtime-operator", (0, 1)),
}
"""Of ONNX Runtime's own domain, in the same way; all inputs of an operator in neither list are named."""
_CONTRIB_DOMAINS = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
_TABLES = ("EmbedLayerNormalization", "GatherBlockQuantized")
_NOT_PRODUCTS = (
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization", "GroupNorm"),
    *("BiasGelu", "BiasAdd", "BiasSplitGelu", "BiasSoftmax", "BiasDropout", "FastGelu", "QuickGelu", "Gelu"),
    *("QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"),
    *("QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearWhere", "QLinearReduceMean", "RotaryEmbedding"),
    *("QuantizeLinear", "DequantizeLinear", "RelativePositionBias", "GatedRelativePositionBias", "SkipGroupNorm"),
    *("Pad", "Trilu", "Unique", "ExpandDims", "GridSample", "CropAndResize", "BeamSearch", "GreedySearch", "Sampling"),
    *("ReorderInput", "ReorderOutput", "DynamicTimeWarping", "MaxpoolWithMask", "NGramRepeatBlock"),
)
_SPREADING = (
    *("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Concat"),
    *("Mul", "Div", "Add", "Sub", "Neg", "Where", "Pad", "Split", "Expand", "Clip", "Abs", "Sign", "Round", "Pow"),
    *("Sqrt", "Tile", "QuantizeLinear", "DequantizeLinear", "Max", "Min", "Sum", "CastLike", "Tanh", "Sigmoid"),
    *("ReduceSum", "ReduceMean", "ReduceL2", "LpNormalization", "Exp", "Reciprocal", "ConstantOfShape", "ScatterND"),
)
_CHOOSING = {
    *("Gather", "GatherND", "Slice", "Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze"),
    *("QuantizeLinear", "DequantizeLinear"),
}
"""One of a bank of matrices behind these alone is still the weight of the product that reads it."""
_INDEX_TYPES = ("int64", "int32", "bool", "uint64", "uint32")
_DEEPEST = 64
_MATRIX_RANK = 2


@dataclass(frozen=True, slots=True)
class UnreadConstant:
    """A constant of two and more dimensions that an operator multiplies by, unread."""

    name: str
    node: str
    shape: tuple[int, ...]
    dtype: str
    reason: Reason


def node_name(node: AnyNode) -> str:
    """A node's name; of nameless ones that of its first output."""
    return as_text(node.name or (node.outputs[0].name if node.outputs else None) or node.op_type)


def unread_constants(
    nodes: Sequence[Node], where: Path, read: Callable[[AnyNode, Path], object | None]
) -> Iterator[UnreadConstant]:
    """Find them; one that several operators read is given once, with its first.

    Args:
        nodes: Of all graphs of the model.
        where: The model's path.
        read: Tells what onnx_reader.py makes of a node; None where it takes no constant of it for a weight.

    Raises:
        InputError: A constant's data contradict its shape.
    """
    seen: set[tuple[str, Reason]] = set()
    for node in nodes:
        for found in _of_node(node, where, read):
            if (found.name, found.reason) not in seen:
                seen.add((found.name, found.reason))
                yield found


def _of_node(node: Node, where: Path, read: Callable[[AnyNode, Path], object | None]) -> Iterator[UnreadConstant]:
    known = node.op_type if node.domain in _DEFAULT else ""
    if known in _READ:
        if read(node, where) is None:
            yield from _of_read_operator(node, where)
        return
    if known in _MULTIPLIES:
        code, indices = _MULTIPLIES[known]
        detail = _equation(node) if known == "Einsum" else known
        yield from _inputs(node, where, Reason(code, detail), indices)
    elif not known and node.domain.startswith(_CONTRIB_DOMAINS):
        if node.op_type in _TABLES:
            yield from _inputs(node, where, Reason("embedding"), None)
        elif node.op_type not in _NOT_PRODUCTS:
            code, indices = _CONTRIB.get(node.op_type, ("runtime-operator", None))
            yield from _inputs(node, where, Reason(code, _full_name(node)), indices)
    elif not known and node.domain != "ai.onnx.ml":
        yield from _inputs(node, where, Reason("custom-operator", _full_name(node)), None)


def _full_name(node: Node) -> str:
    return f"{as_text(node.domain)}.{as_text(node.op_type)}"


def _equation(node: Node) -> str:
    found = (attribute.s for attribute in node.proto.attribute if attribute.name == "equation")
    return repr(next(found, b"").decode("utf-8", "backslashreplace")[:80])


def _inputs(node: Node, where: Path, reason: Reason, indices: Iterable[int] | None) -> Iterator[UnreadConstant]:
    for index, value in enumerate(node.inputs):
        if value is None or (indices is not None and index not in indices):
            continue
        yield from _constant(value, node, where, reason)


def _constant(value: Value, node: Node, where: Path, reason: Reason) -> Iterator[UnreadConstant]:
    """The value as an unread constant, if it is a constant of two and more dimensions that may hold weights."""
    if value.sparse_shape is not None:
        if len(value.sparse_shape) > 1:
            yield UnreadConstant(
                as_text(value.name), node_name(node), value.sparse_shape, "", Reason("sparse-initializer")
            )
        return
    found = resolve(value, where)
    if found is not None:
        if len(found.shape) > 1 and found.stored_dtype not in _INDEX_TYPES:
            yield UnreadConstant(found.name, node_name(node), found.shape, found.stored_dtype, reason)
        return
    yield from _leaves(value, node, where, reason)


def _of_read_operator(node: Node, where: Path) -> Iterator[UnreadConstant]:
    """The weights of an operator that is read, where they are no plain constants."""
    for index in _READ[node.op_type]:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            continue
        found = list(_constant(value, node, where, Reason("unfolded", "")))
        yield from found
        if found:
            return


def _leaves(value: Value, node: Node, where: Path, reason: Reason) -> Iterator[UnreadConstant]:
    """Constants that a computed weight is made of.

    All of them where it is made of constants alone; where the network's data take part, only those of a convolution
    (modulated weights) and banks of matrices of which the data choose one (experts): what else reaches a matrix product
    may be activations with a table added.
    """
    held: list[UnreadConstant] = []
    search = _Search(node, where)
    data = search.gather(value, held)
    operators = search.operators
    is_convolution = node.op_type in ("Conv", "ConvTranspose") and node.domain in _DEFAULT
    if data and not is_convolution and set(operators) <= _CHOOSING:
        held = [found for found in held if found.reason.code != "constant" or len(found.shape) > _MATRIX_RANK]
    elif data and not is_convolution:
        held = [found for found in held if found.reason.code in ("sparse-initializer", "loop-input")]
    names = ", ".join(dict.fromkeys(operators))
    for found in held:
        if found.reason.code != "constant":
            yield found
            continue
        why = Reason("modulated", names) if data else Reason("unfolded", names)
        final = reason if reason.code != "unfolded" and not data else why
        yield UnreadConstant(found.name, found.node, found.shape, found.dtype, final)


@dataclass(slots=True)
class _Search:
    """What is behind one input of an operator, found once for each value on the way."""

    node: Node
    where: Path
    operators: list[str] = field(default_factory=list)
    holds_data: dict[int, bool] = field(default_factory=dict)
    """id of a value -> whether something else than constants is behind it."""

    def gather(self, value: Value, held: list[UnreadConstant], depth: int = 0) -> bool:
        """Add the constants behind a value to `held`, each once; tells whether the network's data are there, too."""
        if depth > _DEEPEST:
            return True
        if id(value) not in self.holds_data:
            # A circle leads to no constant.
            self.holds_data[id(value)] = True
            self.holds_data[id(value)] = self._step_behind(value, held, depth)
        return self.holds_data[id(value)]

    def _step_behind(self, value: Value, held: list[UnreadConstant], depth: int) -> bool:
        if value.sparse_shape is not None:
            held.extend(_constant(value, self.node, self.where, Reason("sparse-initializer")))
            return False
        if value.tensor is not None:
            held.extend(_plain(value, self.node, self.where))
            return False
        if value.passed_in is not None:
            outer, index = value.passed_in
            source = outer.inputs[index]
            inner: list[UnreadConstant] = []
            if source is None or self.gather(source, inner, depth + 1):
                return True
            reason = Reason("loop-input", outer.op_type)
            held.extend(UnreadConstant(found.name, found.node, found.shape, found.dtype, reason) for found in inner)
            return False
        producer = value.producer()
        if producer is None or producer.op_type not in _SPREADING:
            return True
        self.operators.append(_full_name(producer) if producer.domain not in _DEFAULT else producer.op_type)
        data = False
        for source in producer.inputs:
            # A product of two values of the network has no constants that are its weights.
            if source is not None and self.gather(source, held, depth + 1):
                data = True
        return data


def _plain(value: Value, node: Node, where: Path) -> Iterator[UnreadConstant]:
    found = resolve(value, where)
    if found is not None and len(found.shape) > 1 and found.stored_dtype not in _INDEX_TYPES:
        yield UnreadConstant(found.name, node_name(node), found.shape, found.stored_dtype, Reason("constant"))
