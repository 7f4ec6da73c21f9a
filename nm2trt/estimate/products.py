"""Convolutions, matrix products and attention as GEMMs: m, n, k and groups from the shapes around a node."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx

from nm2trt.errors import InputError
from nm2trt.estimate.geometry import Kind
from nm2trt.onnx_tools.shape_inference import Shape, ShapedGraph
from nm2trt.onnx_tools.tensors import as_text

Source = Callable[[str], str]


@dataclass(slots=True, kw_only=True)
class Product:
    """One node's product."""

    node: onnx.NodeProto
    kind: Kind
    m: int
    n: int
    k: int
    groups: int = 1
    channels: int = 0
    kernel: tuple[int, ...] = ()
    flops: int
    weight: str = ""
    weight_elements: int = 0
    quantized: bool = False
    read_share: float = 1.0
    """Part of the input that is read at all."""

    def fields(self) -> dict[str, Any]:
        """For LayerGeometry."""
        names = "kind m n k groups channels kernel flops weight weight_elements quantized"
        return {name: getattr(self, name) for name in names.split()}


def product_of(node: onnx.NodeProto, graph: ShapedGraph, source: Source) -> Product | None:
    """Read a node as a product; None for every other operator.

    Raises:
        InputError: A shape around it is unknown, or the shapes do not fit each other.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type not in _READERS:
        return None
    try:
        product = _READERS[node.op_type](node, graph)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"node {as_text(node.name or node.op_type)!r} ({node.op_type}): shapes unknown or unfit ({error})",
            where=graph.path,
            hint="check the model with onnx.checker, and --shape",
        ) from None
    product.weight = _weight_name(node, graph, source)
    return product


def attention_product(scores: Product, values: Product) -> Product:
    """Join softmax(Q K^T) V: the FLOPs of both products, the dimensions of the first."""
    return Product(
        node=scores.node,
        kind="attention",
        m=scores.m,
        n=scores.n,
        k=scores.k,
        groups=scores.groups,
        channels=scores.channels,
        flops=scores.flops + values.flops,
        quantized=scores.quantized,
    )


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _conv(node: onnx.NodeProto, graph: ShapedGraph) -> Product:
    x, w, y = (graph.shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    attributes = _attributes(node)
    groups = int(attributes.get("group", 1))
    _check(len(w) == len(x) >= 3, f"input {x}, weight {w}")
    _check(x[1] == w[1] * groups and w[0] % groups == 0, f"input {x}, weight {w}, {groups} groups")
    m, n, k = y[0] * math.prod(y[2:]), w[0] // groups, math.prod(w[1:])
    strides = attributes.get("strides") or [1] * len(w[2:])
    share = math.prod(min(1.0, size / stride) for size, stride in zip(w[2:], strides, strict=True))
    return Product(
        node=node,
        kind="conv",
        m=m,
        n=n,
        k=k,
        groups=groups,
        channels=w[1],
        kernel=w[2:],
        flops=2 * m * n * k * groups,
        weight_elements=math.prod(w),
        read_share=share,
    )


def _conv_transpose(node: onnx.NodeProto, graph: ShapedGraph) -> Product:
    x, w = graph.shapes[node.input[0]], graph.shapes[node.input[1]]
    groups = int(_attributes(node).get("group", 1))
    _check(len(w) == len(x) >= 3 and x[1] == w[0] and w[0] % groups == 0, f"input {x}, weight {w}, {groups} groups")
    m, n, k = x[0] * math.prod(x[2:]), math.prod(w[1:]), w[0] // groups
    return Product(
        node=node,
        kind="conv-transpose",
        m=m,
        n=n,
        k=k,
        groups=groups,
        channels=k,
        kernel=w[2:],
        flops=2 * m * n * k * groups,
        weight_elements=math.prod(w),
    )


def _gemm(node: onnx.NodeProto, graph: ShapedGraph) -> Product:
    a, b = graph.shapes[node.input[0]], graph.shapes[node.input[1]]
    _check(len(a) == len(b) == 2, f"{a} x {b}")
    attributes = _attributes(node)
    a = a[::-1] if attributes.get("transA", 0) else a
    b = b[::-1] if attributes.get("transB", 0) else b
    return _matrices(node, graph, a, b)


def _matmul(node: onnx.NodeProto, graph: ShapedGraph) -> Product:
    a, b = graph.shapes[node.input[0]], graph.shapes[node.input[1]]
    a = (1, *a) if len(a) == 1 else a
    b = (*b, 1) if len(b) == 1 else b
    return _matrices(node, graph, a, b)


def _matrices(node: onnx.NodeProto, graph: ShapedGraph, a: Shape, b: Shape) -> Product:
    """numpy.matmul's rule: a is [..., M, K], b is [..., K, N]."""
    _check(a[-1] == b[-2], f"{a} x {b}")
    left, right = (name in graph.constants for name in node.input[:2])
    rows, k, columns = a[-2], a[-1], b[-1]
    batch = max(math.prod(a[:-2]), math.prod(b[:-2]), math.prod(graph.shapes[node.output[0]]) // (rows * columns))
    kind: Kind = "gemm" if left or right else "batched-matmul"
    m, n, groups = rows, columns, batch
    if right and math.prod(b[:-2]) == 1:
        m, groups = batch * rows, 1
    elif left and math.prod(a[:-2]) == 1:
        # The weights' rows are the output features.
        m, n, groups = batch * columns, rows, 1
    elif kind == "batched-matmul" and batch == 1:
        kind = "gemm"
    elements = math.prod(b) if right else math.prod(a) if left else 0
    flops = 2 * batch * rows * columns * k
    return Product(
        node=node, kind=kind, m=m, n=n, k=k, groups=groups, channels=k, flops=flops, weight_elements=elements
    )


def _attention(node: onnx.NodeProto, graph: ShapedGraph) -> Product:
    """ONNX operator Attention (opset 23): Q, K, V as [batch, heads, tokens, size] or [batch, tokens, heads * size]."""
    q, key, v = (graph.shapes[name] for name in node.input[:3])
    attributes = _attributes(node)
    if len(q) == 3:
        heads = int(attributes["q_num_heads"])
        kv_heads = int(attributes["kv_num_heads"])
        q = (q[0], heads, q[1], q[2] // heads)
        key = (key[0], kv_heads, key[1], key[2] // kv_heads)
        v = (v[0], kv_heads, v[1], v[2] // kv_heads)
    batch = q[0] * q[1]
    flops = 2 * batch * q[2] * key[2] * (q[3] + v[3])
    return Product(node=node, kind="attention", m=q[2], n=key[2], k=q[3], groups=batch, channels=q[3], flops=flops)


_READERS: dict[str, Callable[[onnx.NodeProto, ShapedGraph], Product]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Attention": _attention,
}


def _weight_name(node: onnx.NodeProto, graph: ShapedGraph, source: Source) -> str:
    """The stored tensor behind a constant operand, followed through Q/DQ, transposes and views."""
    if node.op_type == "Attention":
        return ""
    # Not `onnx_tools.constants.resolve`: it gives up where a constant is computed, and the product still has a weight
    # there, to be named after the first tensor that it is computed from.
    for name in (node.input[1], node.input[0]):
        at = source(name)
        while at in graph.constants:
            makers = graph.makers(at)
            if not makers or not makers[0].input or makers[0].op_type == "ConstantOfShape":
                return as_text(at)
            at = makers[0].input[0]
    return ""
