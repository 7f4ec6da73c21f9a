"""Whether two ONNX files compute the same, in ONNX Runtime on random inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_DYNAMIC_SIZES = (64, 32, 16, 224, 8)
"""Tried in turn for axes of unknown size other than the first, which gets a batch of 2, then of 1."""
_TOLERANCES = {"float16": 2e-2, "bfloat16": 1e-1, "int8": 5e-2, "uint8": 5e-2}
_TOLERANCE = 1e-3
"""Sums in another order; relative to the largest magnitude of an output."""

_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """What running both files found."""

    outcome: Literal["agree", "differ", "unchecked"]
    largest_difference: float | None
    """Relative to the largest magnitude of the output in question."""
    note: str


def compare_outputs(original: Path, changed: Path, dtypes: set[str]) -> OutputComparison:
    """Run both files on the same random inputs.

    Args:
        original: An ONNX file.
        changed: An ONNX file with the same inputs and outputs.
        dtypes: Types of the weights, which set the tolerance.

    Returns:
        "unchecked" where ONNX Runtime cannot run the original, with its reason.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        return OutputComparison("unchecked", None, "ONNX Runtime is not installed")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        first, second = (
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]) for path in (original, changed)
        )
    except Exception as error:  # noqa: BLE001 -- the runtime's own error types
        return OutputComparison("unchecked", None, f"ONNX Runtime cannot load it: {_line(error)}")
    failure = "an input has a type that is not made up here"
    for feeds in _feeds(first.get_inputs()):
        try:
            expected = first.run(None, feeds)
        except Exception as error:  # noqa: BLE001 -- sizes that do not fit raise whatever the operator raises
            failure = f"ONNX Runtime cannot run it on random inputs: {_line(error)}"
            continue
        names = [output.name for output in first.get_outputs()]
        return _compared(names, expected, second.run(None, feeds), dtypes)
    return OutputComparison("unchecked", None, failure)


def _compared(names: list[str], expected: list[Any], found: list[Any], dtypes: set[str]) -> OutputComparison:
    tolerance = max((_TOLERANCES.get(dtype, _TOLERANCE) for dtype in dtypes), default=_TOLERANCE)
    worst, where = 0.0, ""
    for name, left, right in zip(names, expected, found, strict=True):
        difference = _difference(left, right)
        if difference > worst:
            worst, where = difference, name
    words = f"output {where!r} by {worst:.2g} of its largest magnitude" if where else ""
    return OutputComparison("agree" if worst <= tolerance else "differ", worst, words)


def _difference(left: Any, right: Any) -> float:
    a, b = np.asarray(left), np.asarray(right)
    if a.shape != b.shape:
        return float("inf")
    if a.dtype.kind not in "fiu" or not a.size:
        return 0.0 if np.array_equal(a, b) else 1.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    if not np.array_equal(finite, np.isfinite(y)):
        return float("inf")
    scale = float(np.abs(x[finite]).max(initial=0.0)) or 1.0
    return float(np.abs(x[finite] - y[finite]).max(initial=0.0)) / scale


def _feeds(inputs: list[Any]) -> Iterator[dict[str, NDArray[Any]]]:
    if any(port.type not in _NUMPY for port in inputs):
        return
    for size in _DYNAMIC_SIZES:
        for batch in (2, 1):
            rng = np.random.default_rng(0)
            yield {port.name: _random(rng, port, batch, size) for port in inputs}


def _random(rng: np.random.Generator, port: Any, batch: int, size: int) -> NDArray[Any]:
    shape = [
        length if isinstance(length, int) else (batch if axis == 0 else size) for axis, length in enumerate(port.shape)
    ]
    dtype = _NUMPY[port.type]
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    # Small integers are tokens, masks and lengths alike.
    return rng.integers(0, 2, shape).astype(dtype)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
