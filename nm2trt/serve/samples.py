"""Inputs for a server's check, and what ONNX Runtime answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.artifacts import BuildDocument, GraphPort
from nm2trt.errors import InputError
from nm2trt.serve.ports import has_dynamic_batch, numpy_type

Array = NDArray[Any]
Feed = dict[str, Array]

_SEED = 0
_FREE_SIZE = 8
"""Length of a free dimension besides the batch, where no data says one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Requests, each with the answer that it must get."""

    batched: bool
    """Whether several samples can go in one request."""
    inputs: dict[str, Array]
    """[samples, ...]: a sample's own shape behind, which for a graph of fixed shapes includes its batch."""
    outputs: dict[str, Array]
    words: str

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def request(self, at: int, size: int = 1) -> tuple[Feed, Feed]:
        """Inputs and expected outputs of a request with samples at, at + 1, ...; wraps around."""
        if not self.batched:
            return {k: v[at % len(self)] for k, v in self.inputs.items()}, {
                k: v[at % len(self)] for k, v in self.outputs.items()
            }
        rows = np.arange(at, at + size) % len(self)
        return {k: v[rows] for k, v in self.inputs.items()}, {k: v[rows] for k, v in self.outputs.items()}


def build_samples(build: BuildDocument, onnx: Path, *, count: int, data_dir: Path | None = None) -> Samples:
    """Take the build's own test samples (seeded noise where it names no data) and run them in ONNX Runtime.

    Args:
        build: The build's document.
        onnx: Its graph.
        count: How many samples.
        data_dir: Where the data set's files are; None looks in the usual places.

    Raises:
        InputError: The data cannot be read, or ONNX Runtime cannot run the graph.
    """
    batched = has_dynamic_batch(build)
    inputs, words = _real(build, count, data_dir) if batched else ({}, "")
    if not inputs:
        rng = np.random.default_rng(_SEED)
        inputs = {port.name: _noise(port, count, rng, batched=batched) for port in build.inputs}
        words = f"{count} samples of seeded noise"
    outputs = _run(onnx, inputs, [port.name for port in build.outputs], batched=batched)
    return Samples(batched=batched, inputs=inputs, outputs=outputs, words=words)


def _real(build: BuildDocument, count: int, data_dir: Path | None) -> tuple[dict[str, Array], str]:
    if build.source.data is None or len(build.inputs) != 1 or numpy_type(build.inputs[0].dtype) != "float32":
        return {}, ""
    from nm2trt.data import load_data_for

    port = build.inputs[0]
    shape = tuple(size for size in port.shape[1:] if isinstance(size, int))
    x_BX = load_data_for(build.source.data, shape, data_dir).test_samples(count)
    if x_BX.shape[1:] != shape:
        return {}, ""
    samples = np.ascontiguousarray(x_BX, dtype=np.float32)
    return {port.name: samples}, f"first {len(samples)} test samples of {build.source.data}"


def _noise(port: GraphPort, count: int, rng: np.random.Generator, *, batched: bool) -> Array:
    shape = [size if isinstance(size, int) else _FREE_SIZE for size in port.shape[batched:]]
    kind = np.dtype(numpy_type(port.dtype))
    if kind.kind == "f":
        return rng.standard_normal((count, *shape)).astype(kind)
    return rng.integers(0, 2, (count, *shape)).astype(kind)


def _run(onnx: Path, inputs: dict[str, Array], names: Sequence[str], *, batched: bool) -> dict[str, Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
        if batched:
            results = session.run(list(names), inputs)
        else:
            each = [session.run(list(names), {k: v[at] for k, v in inputs.items()}) for at in range(_count(inputs))]
            results = [np.stack(values) for values in zip(*each, strict=True)]
    except Exception as error:
        # onnxruntime's exception classes have no public base.
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"ONNX Runtime cannot run it, so there is nothing to compare with: {first}", where=onnx
        ) from error
    return dict(zip(names, results, strict=True))


def _count(inputs: dict[str, Array]) -> int:
    return len(next(iter(inputs.values())))


def largest_error(expected: Feed, found: Feed) -> tuple[float, float, str]:
    """Compare two sets of outputs.

    Returns:
        Largest absolute error, the largest over its output's largest magnitude (inf for NaN or a wrong shape), and
        where that is.
    """
    worst_abs, worst_rel, where = 0.0, 0.0, ""
    for name, right in expected.items():
        value = found.get(name)
        if value is None or value.shape != right.shape:
            shape = "nothing" if value is None else f"shape {list(value.shape)}"
            return float("inf"), float("inf"), f"{name}: {shape} instead of shape {list(right.shape)}"
        with np.errstate(invalid="ignore"):
            difference = np.abs(right.astype(np.float64) - value.astype(np.float64))
        # Two NaN or two equal infinities agree; one on one side only is larger than any error.
        same = (right == value) | (np.isnan(right) & np.isnan(value)) if right.dtype.kind == "f" else right == value
        difference = np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference))
        finite = np.abs(right[np.isfinite(right)]) if right.dtype.kind == "f" else np.abs(right)
        scale = float(finite.max(initial=0)) or 1.0
        error = float(difference.max(initial=0.0))
        worst_abs = max(worst_abs, error)
        if error / scale > worst_rel or not where:
            worst_rel = max(worst_rel, error / scale)
            index = np.unravel_index(int(difference.argmax()), difference.shape)
            where = (
                f"{name}[{','.join(str(int(one)) for one in index)}]: {value[index]:.8g}, expected {right[index]:.8g}"
            )
    return worst_abs, worst_rel, where
