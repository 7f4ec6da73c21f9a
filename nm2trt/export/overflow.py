"""Which layers' activations leave the range of float16, seen on samples in the exported graph itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.onnx_tools.convert_precision import LARGEST
from nm2trt.ort.session import Session, session_of_model

_HIGHEST, _LOWEST = "nm2trt/highest/", "nm2trt/lowest/"
_LISTED = 8
_BOUNDED = frozenset(
    (
        "AveragePool",
        "Concat",
        "Dropout",
        "Expand",
        "Flatten",
        "Gather",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "MaxPool",
        "Pad",
        "Relu",
        "Reshape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Squeeze",
        "Tanh",
        "Transpose",
        "Unsqueeze",
    )
)
"""Operators whose outputs exceed neither 1 nor the largest of their inputs: no overflow begins in them."""
_MASKING = ("Add", "Where", "Expand", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Cast", "Slice", "Identity")


class RangeProbe:
    """A session of the graph that also tells the highest and lowest value of each float16 activation.

    ONNX Runtime's CPU computes much of float16 in float32, so that an overflow need not show in the outputs there,
    as it will on a GPU. Each activation is therefore looked at by itself.
    """

    def __init__(self, path: Path) -> None:
        model = ir.load(path)
        self._watched: dict[str, ir.Node] = {}
        for node in list(model.graph):
            for value in node.outputs if node.op_type not in _BOUNDED or node.domain else ():
                if value.dtype == ir.DataType.FLOAT16 and value.name:
                    self._watched[value.name] = node
                    _watch(model, value)
        self._model = model
        self._session: Session = session_of_model(model, path)
        self._highest: dict[str, float] = {}
        self._lowest: dict[str, float] = {}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph, keep the ranges, and give its own outputs."""
        found = self._session.run(feeds)
        outputs = {}
        for name, value in found.items():
            if name.startswith(_HIGHEST):
                key = name.removeprefix(_HIGHEST)
                self._highest[key] = max(self._highest.get(key, -np.inf), _or_infinity(value))
            elif name.startswith(_LOWEST):
                key = name.removeprefix(_LOWEST)
                self._lowest[key] = min(self._lowest.get(key, np.inf), -_or_infinity(-value))
            else:
                outputs[name] = value
        return outputs

    @property
    def peak(self) -> tuple[str, float]:
        """Node with the largest finite magnitude, and that magnitude."""
        limit = LARGEST["fp16"]
        magnitudes = {
            str(node.name): max(abs(self._highest[key]), abs(self._lowest[key]))
            for key, node in self._watched.items()
            if key in self._highest
        }
        finite = {name: value for name, value in magnitudes.items() if value <= limit}
        return max(finite.items(), key=lambda item: item[1], default=("", 0.0))

    def check(self) -> None:
        """Refuse a graph in which a value left the range.

        Raises:
            InputError: Names each operator in which finite inputs became too large, with the value where known.
        """
        limit = LARGEST["fp16"]
        over = {
            key
            for key, node in self._watched.items()
            if self._highest.get(key, 0.0) > limit
            or (self._lowest.get(key, 0.0) < -limit and not _only_masks(node.outputs))
        }
        origins = [
            key for key in self._watched if key in over and not over.intersection(self._sources(self._watched[key]))
        ]
        if not origins:
            return
        named = [f"{self._watched[key].name} ({_shown(self._highest[key], self._lowest[key])})" for key in origins]
        more = f" and {len(named) - _LISTED} more" if len(named) > _LISTED else ""
        raise InputError(
            f"activations beyond the largest fp16, {limit:g}, on the samples: {', '.join(named[:_LISTED])}{more}",
            where="--precision",
            hint="use --precision bf16, or train with smaller activations",
        )

    def _sources(self, node: ir.Node) -> set[str]:
        """Names of the watched values that a node reads, itself or behind operators that are not watched."""
        found: set[str] = set()
        seen: set[ir.Value] = set()
        pending = list(node.inputs)
        while pending:
            value = pending.pop()
            if value is None or value in seen:
                continue
            seen.add(value)
            producer = value.producer()
            if value.name in self._watched:
                found.add(str(value.name))
            elif producer is not None:
                pending += producer.inputs
        return found


def _watch(model: ir.Model, value: ir.Value) -> None:
    wide = ir.node("Cast", [value], attributes={"to": int(ir.DataType.FLOAT)})
    nodes = [wide]
    for operator, prefix in (("ReduceMax", _HIGHEST), ("ReduceMin", _LOWEST)):
        node = ir.node(operator, [wide.outputs[0]], attributes={"keepdims": 0})
        output = node.outputs[0]
        output.name, output.dtype, output.shape = f"{prefix}{value.name}", ir.DataType.FLOAT, ir.Shape(())
        nodes.append(node)
        model.graph.outputs.append(output)
    wide.outputs[0].name = f"nm2trt/wide/{value.name}"
    for node in nodes:
        model.graph.append(node)


def _or_infinity(value: NDArray[Any]) -> float:
    number = float(value)
    return np.inf if np.isnan(number) else number


def _only_masks(values: Iterable[ir.Value]) -> bool:
    """Whether a value only ever reaches a softmax, for which minus infinity is an ordinary mask."""
    pending, seen = list(values), set()
    while pending:
        value = pending.pop()
        if value.is_graph_output() and not str(value.name).startswith("nm2trt/"):
            return False
        for user, _ in value.uses():
            if any(str(one.name).startswith("nm2trt/") for one in user.outputs) or user in seen:
                continue
            seen.add(user)
            if user.op_type in _MASKING:
                pending += list(user.outputs)
            elif user.op_type not in ("Softmax", "LogSoftmax"):
                return False
    return bool(seen)


def _shown(highest: float, lowest: float) -> str:
    value = highest if abs(highest) >= abs(lowest) else lowest
    return f"{value:g}"
