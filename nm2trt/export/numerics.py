"""The written ONNX file in ONNX Runtime against its reference, on the same inputs, at several batch sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.artifacts import BatchRange, NumericsRecord
from nm2trt.artifacts.build import OutputNumerics
from nm2trt.export.overflow import RangeProbe
from nm2trt.export.reference import FEWEST_SAMPLES, Reference, Samples
from nm2trt.onnx_tools.convert_precision import LARGEST
from nm2trt.ort import (
    OutputComparison,
    Reason,
    as_arrays,
    compare_outputs,
    describe_comparison,
    find_batch_axis,
    first_failure,
    merge_comparisons,
    summarize_comparison,
)
from nm2trt.ort.session import session_of

Array = NDArray[Any]

TOLERANCES = {"fp32": 1e-4, "fp64": 1e-4, "fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}
"""Bounds on the largest error over the largest reference magnitude.

Measured on the mlp, resnet8 and resnet20 trained on digits, three seeds each: fp32 at most 4.6e-7, fp16 4.3e-4, bf16
3.2e-3. The bounds leave 15 to 200 times that for deeper networks, and a wrong epsilon, a lost bias or a
mistaken transpose is far above them. int8 is for Q/DQ graphs, also as found: a value that another
order of sums rounds to the next INT8 step is 1/127 of its range off; measured 2.0e-2 on resnet8 with random weights.
Other quantized types have steps at least as large, and the same bound.
"""

_NEAR = 0.25
_FEWEST_WATCHED = 2
_MAP_RANK = 4
_HERE = "ONNX Runtime"


def tolerance_of(precision: str, *, quantized: bool = False) -> float:
    """The usual bound for a network's types, "fp32" or "int8+fp16": the widest of theirs.

    Args:
        precision: As `BuildDocument.precision` names it.
        quantized: Whether the graph rounds to integers anywhere.
    """
    parts = [*precision.split("+"), *(["int8"] if quantized else [])]
    return max(TOLERANCES.get(part, TOLERANCES["int8"]) for part in parts)


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
    """Run all samples through the reference, and through ONNX Runtime at each batch size; compare output by output.

    The optimal batch size takes all samples, the smallest and the largest a few. The rules are those of
    `nm2trt.ort.compare_outputs`; of integers a share of `tolerance` may differ where the network is not float32.

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
    session = session_of(path)
    expected = _Expected(reference, samples, 1 if reference.one_by_one else plan[0].size, plan)
    remarks = list(notes)
    if probe:
        remarks += _probed(path, samples, plan[0].size)
    outputs: dict[str, _Output] = {}
    for run in plan:
        for number, piece in enumerate(samples.pieces(run.size, run.count)):
            start = number * run.size
            compared = compare_outputs(
                right := expected.at(start, min(start + run.size, run.count)),
                found := as_arrays(session.run(piece)),
                tolerance=tolerance,
                mismatch_share=0.0 if precision in ("fp32", "fp64") else tolerance,
                any_float=not reference.one_by_one or "bf16" in precision,
            )
            for one in compared:
                output = outputs.setdefault(one.name, _Output([], expected.axes.get(one.name)))
                output.add(one, start, run.size, fixed=samples.fixed)
                output.count_argmax(right.get(one.name), found.get(one.name))
    return _record(
        reference,
        samples,
        list(outputs.values()),
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


class _Expected:
    """The reference's outputs, computed once where they can be cut into samples, else at the batch size in question.

    Args:
        reference: Runs at `size`.
        samples: Inputs.
        size: Batch size of the reference.
        plan: The batch sizes to come.
    """

    def __init__(self, reference: Reference, samples: Samples, size: int, plan: Sequence[_Run]) -> None:
        self._reference, self._samples, self._size = reference, samples, size
        pieces = [as_arrays(reference.run(piece)) for piece in samples.pieces(size, samples.count)]
        self._pieces = pieces
        self.axes: dict[str, int] = {}
        """Output name -> its batch axis; outputs that have none are missing."""
        self._joined: dict[str, Array] = {}
        other = next((min(run.size, samples.count) for run in plan if run.size != size), None)
        if samples.fixed or other is None:
            if not samples.fixed and samples.count > size:
                # A single size: the last, shorter piece tells the axis.
                self._learn({size: pieces[0], (samples.count - 1) % size + 1: pieces[-1]})
            return
        self._learn({size: pieces[0], other: as_arrays(reference.run(samples.piece(0, other)))})
        self._joined = {
            name: np.concatenate([piece[name] for piece in pieces], axis=axis) for name, axis in self.axes.items()
        }

    def at(self, start: int, stop: int) -> dict[str, Array]:
        """The outputs of one piece."""
        if self._samples.fixed:
            return self._pieces[start]
        aligned = start % self._size == 0 and stop == min(start + self._size, self._samples.count)
        if aligned:
            return self._pieces[start // self._size]
        if self._joined.keys() >= self._pieces[0].keys():
            return {
                name: values[(slice(None),) * self.axes[name] + (slice(start, stop),)]
                for name, values in self._joined.items()
            }
        return as_arrays(self._reference.run(self._samples.piece(start, stop)))

    def _learn(self, by_size: Mapping[int, Mapping[str, Array]]) -> None:
        names = set.intersection(*(set(outputs) for outputs in by_size.values()))
        for name in names:
            axis = find_batch_axis({size: outputs[name].shape for size, outputs in by_size.items()})
            if axis is not None:
                self.axes[name] = axis


@dataclass(slots=True)
class _Output:
    """One output over all pieces so far."""

    pieces: list[OutputComparison]
    axis: int | None
    places: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    """Name of a piece -> where its worst element is, and the batch size; None where all sizes are fixed."""
    agreeing: int = 0
    compared: int = 0

    def add(self, one: OutputComparison, start: int, size: int, *, fixed: bool) -> None:
        axis = self.axis
        index = one.index
        if fixed:
            where = _position(f"sample {start}", index or ())
        elif index is not None and axis is not None:
            where = _position(f"sample {start + index[axis]}", (*index[:axis], *index[axis + 1 :]))
        else:
            where = _position(f"samples from {start}", index or ())
        piece = f"{start}, {size}"
        self.places[piece] = where, None if fixed else size
        self.pieces = [merge_comparisons([*self.pieces, replace(one, piece=piece)])]

    def count_argmax(self, expected: Array | None, found: Array | None) -> None:
        if expected is None or found is None or expected.shape != found.shape or not expected.size:
            return
        axis = _class_axis(expected)
        if axis is not None and axis % expected.ndim != (self.axis or 0):
            same = expected.argmax(axis=axis) == found.argmax(axis=axis)
            self.agreeing += int(same.sum())
            self.compared += same.size

    @property
    def whole(self) -> OutputComparison:
        return merge_comparisons(self.pieces)

    def record(self) -> OutputNumerics:
        whole = self.whole
        countless = whole.structural is not None or whole.reason is Reason.NON_FINITE
        where, batch = self.places[whole.piece]
        values = f": reference {whole.expected}, {_HERE} {whole.found}" if whole.index is not None else ""
        return OutputNumerics(
            name=whole.name,
            max_abs_error=math.inf if countless else whole.max_abs_error,
            max_abs_error_at=f"{where}{values}" + (f", batch {batch}" if batch is not None else ""),
            max_rel_error=math.inf if countless else whole.max_rel_error,
            argmax_agreement=self.agreeing / self.compared if self.compared else None,
            reason=whole.reason.value,
            message="" if whole.passed else describe_comparison(replace(whole, piece=""), other=_HERE),
            summary="" if whole.passed else summarize_comparison(whole),
            elements=whole.elements,
            mismatches=whole.mismatches if whole.exact else None,
            nan_count=whole.nan_count,
            infinity_count=whole.infinity_count,
        )


def _position(sample: str, index: Sequence[int]) -> str:
    return f"{sample}, output {','.join(map(str, index))}" if index else sample


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


def _record(
    reference: Reference,
    samples: Samples,
    outputs: list[_Output],
    *,
    batches: tuple[int, ...],
    tolerance: float,
    notes: list[str],
    precision: str,
) -> NumericsRecord:
    wholes = [one.whole for one in outputs]
    records = [one.record() for one in outputs]
    failed = first_failure(wholes)
    worst = next(
        (one for one in records if failed is not None and one.name == failed.name),
        max(records, key=lambda one: one.max_rel_error),
    )
    agreements = [one.argmax_agreement for one in records if one.argmax_agreement is not None]
    computed = ", its bfloat16 weights computed in float32 (no bfloat16 kernels there)" if precision == "bf16" else ""
    named = f"{worst.name}: " if len(outputs) > 1 else ""
    return NumericsRecord(
        reference=f"{reference.described}; against ONNX Runtime CPU{computed}",
        inputs=samples.inputs,
        samples=samples.count,
        batches=batches,
        max_abs_error=worst.max_abs_error,
        max_abs_error_at=f"{named}{worst.max_abs_error_at}",
        max_rel_error=worst.max_rel_error,
        tolerance=tolerance,
        argmax_agreement=min(agreements, default=1.0),
        passed=failed is None,
        outputs=tuple(records),
        worst=worst.name,
        notes=(*notes, *_non_finite_notes(records)),
    )


def _non_finite_notes(records: list[OutputNumerics]) -> list[str]:
    """What the reference's own outputs hold beside numbers: it agrees, and is worth a look."""
    notes = []
    for one in records:
        kinds = [("NaN", one.nan_count), ("infinite", one.infinity_count)]
        held = " and ".join(f"{count} {kind}" for kind, count in kinds if count)
        if held:
            notes.append(f"output {one.name} holds {held} elements of {one.elements} in the reference")
        if one.elements == 0:
            notes.append(f"output {one.name} is empty on these samples, so nothing of it was compared")
    return notes


def _class_axis(values: Array) -> int | None:
    if values.ndim < 2 or values.dtype.kind != "f":
        return None
    axis = 1 if values.ndim >= _MAP_RANK else -1
    return axis if values.shape[axis] > 1 else None
