"""The written ONNX file in ONNX Runtime against its reference, on the same inputs, at several batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.artifacts import BatchRange, NumericsRecord
from nm2trt.artifacts.build import OutputNumerics
from nm2trt.errors import InputError
from nm2trt.export.overflow import RangeProbe
from nm2trt.export.precision import LARGEST
from nm2trt.export.reference import FEWEST_SAMPLES, Reference, Samples
from nm2trt.export.sessions import session_of

Array = NDArray[Any]

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}
"""Bounds on the largest error over the largest reference magnitude.

Measured on the mlp, resnet8 and resnet20 trained on digits, three seeds each: fp32 at most 4.6e-7, fp16 4.3e-4, bf16
3.2e-3. The bounds leave 15 to 200 times that for deeper networks, and a wrong epsilon, a lost bias or a
mistaken transpose is far above them. int8 is for Q/DQ graphs whose other arithmetic is converted: a value that fp16
rounds to the next INT8 step is 1/127 of its range off; measured 2.0e-2 on resnet8 with random weights.
"""

_NEAR = 0.25
_FEWEST_WATCHED = 2
_MAP_RANK = 4


def check_numerics(
    reference: Reference,
    path: Path,
    samples: Samples,
    batch: BatchRange | None,
    *,
    tolerance: float,
    precision: str,
    notes: Sequence[str] = (),
    probe: bool = False,
) -> NumericsRecord:
    """Run all samples through the reference once, and through ONNX Runtime at each batch size.

    The optimal batch size takes all samples, the smallest and the largest a few.

    Args:
        reference: Gives the right outputs.
        path: The file as it was written.
        samples: Inputs.
        batch: Its three sizes are run, each capped by the number of samples; None runs the fixed shapes.
        tolerance: Bound on the relative error, larger than 0.
        precision: Of the file; said in the record.
        notes: Kept in the record.
        probe: Look for activations that leave the range of float16.

    Raises:
        InputError: ONNX Runtime refuses the model or a batch size, or an activation overflows float16 on the samples.
    """
    plan = _plan(samples, batch)
    first = 1 if reference.one_by_one else plan[0].size
    expected = samples.joined([reference.run(piece) for piece in samples.pieces(first, samples.count)])
    session = session_of(path)
    worst = {name: _Worst(name, scale=_scale(values)) for name, values in expected.items()}
    if missing := set(session.outputs) ^ worst.keys():
        raise InputError(f"outputs differ from the reference's: {', '.join(sorted(missing))}", where=path.name)
    remarks = list(notes)
    if probe:
        remarks += _probed(path, samples, plan[0].size)
    for run in plan:
        found = samples.joined([session.run(piece) for piece in samples.pieces(run.size, run.count)])
        for name, values in found.items():
            worst[name].look(expected[name][: run.count], values, run.size)
    return _record(
        reference,
        samples,
        [worst[name] for name in session.outputs],
        batches=tuple(sorted({run.size for run in plan})) if not samples.fixed else (),
        tolerance=tolerance,
        notes=remarks,
        precision=precision,
    )


@dataclass(frozen=True, slots=True)
class _Run:
    size: int
    count: int


def _plan(samples: Samples, batch: BatchRange | None) -> list[_Run]:
    """Batch sizes with their numbers of samples, the optimal one first."""
    count = samples.count
    if samples.fixed or batch is None:
        return [_Run(1, count)]
    optimal = min(batch.opt, count)
    others = sorted({min(batch.min, count), min(batch.max, count)} - {optimal})
    return [_Run(optimal, count), *(_Run(size, size) for size in others)]


def _probed(path: Path, samples: Samples, size: int) -> list[str]:
    probe = RangeProbe(path)
    # A network that is so large that it is compared on the fewest samples is watched on fewer still.
    count = min(samples.count, FEWEST_SAMPLES if samples.count > FEWEST_SAMPLES else _FEWEST_WATCHED)
    for piece in samples.pieces(min(size, count), count):
        probe.run(piece)
    probe.check()
    node, value = probe.peak
    share = value / LARGEST["fp16"]
    if share < _NEAR:
        return []
    return [f"the largest activation, {value:g} at {node}, is {share:.0%} of what fp16 holds"]


class _Worst:
    """The largest error of one output so far."""

    def __init__(self, name: str, scale: float) -> None:
        self.name = name
        self.scale = scale
        self.error, self.at = -1.0, ""
        self.agreeing = self.compared = 0

    def look(self, expected: Array, found: Array, size: int) -> None:
        if expected.shape != found.shape:
            raise InputError(
                f"output {self.name} is {list(found.shape)}, not {list(expected.shape)}", where="ONNX Runtime"
            )
        axis = _class_axis(expected)
        if axis is not None:
            same = expected.argmax(axis=axis) == found.argmax(axis=axis)
            self.agreeing += int(same.sum())
            self.compared += same.size
        if not expected.size or np.isnan(self.error):
            return
        error, where = _largest_error(expected, found)
        # NaN never compares as larger, so it is caught by name.
        if error > self.error or np.isnan(error):
            self.error, self.at = error, f"{where}, batch {size}"

    @property
    def relative(self) -> float:
        return self.error / self.scale if self.scale > 0 else self.error

    def record(self) -> OutputNumerics:
        return OutputNumerics(
            name=self.name,
            max_abs_error=self.error,
            max_abs_error_at=self.at,
            max_rel_error=self.relative,
            argmax_agreement=self.agreeing / self.compared if self.compared else None,
        )


def _record(
    reference: Reference,
    samples: Samples,
    outputs: list[_Worst],
    *,
    batches: tuple[int, ...],
    tolerance: float,
    notes: list[str],
    precision: str,
) -> NumericsRecord:
    # A NaN is worse than any number.
    worst = max(outputs, key=lambda one: np.inf if np.isnan(one.relative) else one.relative)
    records = [one.record() for one in outputs]
    agreements = [one.argmax_agreement for one in records if one.argmax_agreement is not None]
    computed = ", its bfloat16 weights computed in float32 (no bfloat16 kernels there)" if precision == "bf16" else ""
    named = f"{worst.name}: " if len(outputs) > 1 else ""
    return NumericsRecord(
        reference=f"{reference.described}; against ONNX Runtime CPU{computed}",
        inputs=samples.inputs,
        samples=samples.count,
        batches=batches,
        max_abs_error=worst.error,
        max_abs_error_at=f"{named}{worst.at}",
        max_rel_error=worst.relative,
        tolerance=tolerance,
        argmax_agreement=min(agreements, default=1.0),
        passed=bool(all(one.relative <= tolerance for one in outputs)),
        outputs=tuple(records),
        notes=tuple(notes),
    )


def _scale(values: Array) -> float:
    finite = np.abs(values[np.isfinite(values)]) if values.dtype.kind == "f" else np.abs(values)
    return float(finite.max(initial=0))


def _class_axis(values: Array) -> int | None:
    if values.ndim < 2 or values.dtype.kind != "f":
        return None
    axis = 1 if values.ndim >= _MAP_RANK else -1
    return axis if values.shape[axis] > 1 else None


def _largest_error(expected: Array, found: Array) -> tuple[float, str]:
    """Largest absolute difference and where it is; a NaN on one side only is larger than any number."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    # np.argmax returns the first NaN if there is one.
    index = np.unravel_index(int(np.argmax(difference)), difference.shape)
    position = ",".join(str(int(part)) for part in index[1:])
    where = (
        f"sample {int(index[0])}, output {position}: reference {float(expected[index]):.8g}, "
        f"ONNX Runtime {float(found[index]):.8g}"
    )
    return float(difference[index]), where
