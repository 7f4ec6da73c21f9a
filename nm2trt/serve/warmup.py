"""Inputs that a network certainly takes, for a server's warm-up: a model whose warm-up fails is never ready.

Floating point is warmed up with zeros. Integers and booleans are ones, cut to what the graph bounds them by: a token's
number, a mask that keeps everything, a length, each of which zero would not always be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.artifacts import GraphPort
from nm2trt.serve.ports import batched_ports, numpy_type
from nm2trt.serve.trial_run import try_run

_FREE_SIZE = 8
"""Length of a free dimension besides the batch, in a trial run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """What a server runs before a model is ready."""

    known: bool = True
    """Whether a sample was found that the network takes; else the server must not try one."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Input -> file name; inputs that are not here are zeros."""
    data: Mapping[str, bytes] = field(default_factory=dict)
    """File name -> one sample, in C order."""
    dims: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Input -> its dims, where the network leaves some free; empty where no size is known to run."""


def warmup_data(inputs: Sequence[GraphPort], onnx: Path, *, batched: bool, any_size: bool = True) -> Warmup:
    """Choose one sample of every input that zeros will not do for.

    Args:
        inputs: Of the network.
        onnx: Its graph, which bounds the integers.
        batched: Whether the server adds the batch.
        any_size: Whether what runs the network takes every size that its graph leaves free.
    """
    ports = batched_ports(inputs, batched=batched)
    free = any(size < 0 for _, _, dims in ports for size in dims)
    if free and not any_size:
        return Warmup(known=False)
    if not free and not any(_counts(port) for port in inputs):
        return Warmup()
    value, runs = _value_that_runs(inputs, onnx)
    if runs is False or (free and not runs):
        return Warmup(known=False)
    names: dict[str, str] = {}
    data: dict[str, bytes] = {}
    settled = {name: tuple(_FREE_SIZE if size < 0 else size for size in dims) for name, _, dims in ports}
    if free and not batched:
        settled = {port.name: _feeds(inputs, value, 1)[port.name].shape for port in inputs}
    for at, port in enumerate(inputs):
        if not _counts(port):
            continue
        content = np.full(settled[port.name] or (1,), value[port.name], dtype=numpy_type(port.dtype)).tobytes()
        file = f"input{at}-{hashlib.sha256(content).hexdigest()[:16]}"
        names[port.name], data[file] = file, content
    return Warmup(files=names, data=data, dims=settled if free else {})


def sample_inputs(inputs: Sequence[GraphPort], onnx: Path, *, batch: int) -> dict[str, NDArray[Any]]:
    """One batch for every input, [batch, ...]; free dimensions besides the batch are 8 long."""
    value, _ = _value_that_runs(inputs, onnx)
    return _feeds(inputs, value, batch)


def _counts(port: GraphPort) -> bool:
    """Whether an input may be an index, a length or a mask; pixels in uint8 are none."""
    return port.dtype in ("int64", "int32", "bool")


def _feeds(inputs: Sequence[GraphPort], value: dict[str, int], batch: int) -> dict[str, NDArray[Any]]:
    feeds = {}
    for port in inputs:
        shape = [
            size if isinstance(size, int) else (batch if axis == 0 else _FREE_SIZE)
            for axis, size in enumerate(port.shape)
        ]
        feeds[port.name] = np.full(shape, value[port.name], dtype=numpy_type(port.dtype))
    return feeds


def _value_that_runs(inputs: Sequence[GraphPort], onnx: Path) -> tuple[dict[str, int], bool | None]:
    """Value of each input, and whether the network runs with it; None where nothing here can tell."""
    bounded = _bounded(inputs, onnx)
    runs = try_run(onnx, _feeds(inputs, bounded, 1))
    if runs is not False:
        return bounded, runs
    zeros = dict.fromkeys(bounded, 0)
    return (zeros, True) if try_run(onnx, _feeds(inputs, zeros, 1)) else (bounded, False)


def _bounded(inputs: Sequence[GraphPort], onnx: Path) -> dict[str, int]:
    """One for what counts, less where the graph looks it up in a table of one row."""
    import onnx_ir as ir

    from nm2trt.ort.index_limits import index_limits

    limits = index_limits(ir.load(onnx)) if any(_counts(port) for port in inputs) else {}
    return {port.name: min(1, limits.get(port.name, 2) - 1) if _counts(port) else 0 for port in inputs}
