"""Whether two ONNX files compute the same, in ONNX Runtime on random inputs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nm2trt.ort import Reason, SessionError, first_failure, open_session, runtime_reason
from nm2trt.ort import compare_outputs as compare_arrays
from nm2trt.ort.open_session import Level
from nm2trt.ort.random_inputs import NUMPY_TYPES, draw_values

_DYNAMIC_SIZES = (64, 32, 16, 224, 8)
"""Tried in turn for axes of unknown size other than the first, which gets a batch of 2, then of 1."""
_TOLERANCES = {"float16": 2e-2, "bfloat16": 1e-1, "int8": 5e-2, "uint8": 5e-2}
_TOLERANCE = 1e-3
"""Sums in another order; relative to the largest magnitude of an output."""
_NOISE_FACTOR = 10.0
_TELLING_NOISE = 0.05
"""Outputs that move more than this when nothing but rounding changes tell nothing."""
_TRIALS = 3


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
        "unchecked" where ONNX Runtime cannot run the original, or its outputs are no more than rounding noise.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return OutputComparison("unchecked", None, "ONNX Runtime is not installed")
    wanted: tuple[tuple[Path, Level | None], ...] = ((original, None), (original, "none"), (changed, None))
    try:
        sessions = [open_session(str(path), level=level) for path, level in wanted]
    except SessionError as error:
        return OutputComparison("unchecked", None, f"ONNX Runtime cannot load it: {error.reason}")
    failure = "an input has a type that is not made up here"
    for batch, size in ((batch, size) for size in _DYNAMIC_SIZES for batch in (2, 1)):
        feeds = _feeds(sessions[0].get_inputs(), batch, size)
        try:
            runs = [[session.run(None, feed) for session in sessions[:2]] for feed in feeds]
        except Exception as error:  # noqa: BLE001 -- sizes that do not fit raise whatever the operator raises
            failure = f"ONNX Runtime cannot run it on random inputs: {runtime_reason(error)}"
            continue
        if not feeds:
            break
        nudged = [sessions[0].run(None, _nudged(feed)) for feed in feeds]
        found = [sessions[2].run(None, feed) for feed in feeds]
        names = [output.name for output in sessions[0].get_outputs()]
        trials = [
            _Trial(name, first[index], (second[index], third[index]), changed_outputs[index])
            for (first, second), third, changed_outputs in zip(runs, nudged, found, strict=True)
            for index, name in enumerate(names)
        ]
        return _checked(trials, max((_TOLERANCES.get(dtype, _TOLERANCE) for dtype in dtypes), default=_TOLERANCE))
    return OutputComparison("unchecked", None, failure)


@dataclass(frozen=True, slots=True)
class _Trial:
    """One output for one input."""

    name: str
    expected: Any
    noise: tuple[Any, ...]
    """The original again, with its operators not fused, and with inputs changed in their last bits."""
    found: Any


def _checked(trials: list[_Trial], tolerance: float) -> OutputComparison:
    """Where the original itself moves in its last bits, as a sigmoid near 0 does, it is no yardstick."""
    worst, where, telling = 0.0, "", 0
    for trial in trials:
        noise = max(_difference(trial.expected, other) for other in trial.noise)
        if noise > _TELLING_NOISE:
            continue
        telling += 1
        difference = _difference(trial.expected, trial.found)
        if difference > worst:
            worst, where = difference, trial.name
        if difference > max(tolerance, _NOISE_FACTOR * noise):
            words = f"output {trial.name!r} by {difference:.2g} of its largest magnitude"
            return OutputComparison("differ", difference, words)
    if not telling:
        return OutputComparison("unchecked", None, "on random inputs its outputs are no more than rounding noise")
    return OutputComparison("agree", worst, f"output {where!r}" if where else "")


def _difference(left: Any, right: Any) -> float:
    """0 where they agree, infinite where no number tells how far they are apart."""
    compared = compare_arrays({"": left}, {"": right}, tolerance=np.inf)
    worst = first_failure(compared)
    if worst is not None:
        return 1.0 if worst.reason is Reason.NOT_EQUAL else float("inf")
    return max((one.max_rel_error for one in compared if not one.exact), default=0.0)


def _feeds(inputs: list[Any], batch: int, size: int) -> list[dict[str, NDArray[Any]]]:
    if any(port.type not in NUMPY_TYPES for port in inputs):
        return []
    # An axis of the batch's name is as long as the batch, wherever it is.
    batches = {port.shape[0] for port in inputs if port.shape and isinstance(port.shape[0], str)}
    feeds = []
    for seed in range(_TRIALS):
        rng = np.random.default_rng(seed)
        feeds.append({port.name: _random(rng, port, batch, size, batches) for port in inputs})
    return feeds


def _nudged(feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Floating-point inputs one unit in the last place up."""
    return {
        # Of an array of rank 0 numpy makes a scalar, which ONNX Runtime does not take.
        name: np.asarray(np.nextafter(array, array.dtype.type(np.inf))) if array.dtype.kind == "f" else array
        for name, array in feed.items()
    }


def _random(rng: np.random.Generator, port: Any, batch: int, size: int, batches: set[str]) -> NDArray[Any]:
    shape = [
        length if isinstance(length, int) else (batch if axis == 0 or length in batches else size)
        for axis, length in enumerate(port.shape)
    ]
    return draw_values(rng, shape, NUMPY_TYPES[port.type])
