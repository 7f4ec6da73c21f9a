"""Outputs of two runs of a network, each output compared by itself.

The rules, the same wherever outputs are compared:

- An output that only one side has, another shape or another element type fails.
- Integers, booleans and strings are equal. Where the caller allows it (a network in lower precision, whose ArgMax or
  TopK may meet a near tie), a stated share of the elements may differ.
- Floating point: the largest absolute error is at most `tolerance` times the output's own size, the largest finite
  magnitude of the reference. Where that is 0 the error itself is held against the tolerance.
- NaN and infinities are at the same places with the same sign. So is a fill value, of magnitude 1e30 or more, as
  masks write it: it is held against itself and sets no size, since beside it everything else would look small.
  Wherever outputs are compared this is the one rule for NaN: here, in the figures of `nm2trt.ort.similarity`, and on a
  GPU in `nm2trt.torch_sparse.products.relative_error`.
- An output without elements agrees with another of its shape. One of rank 0 is one element.

A large output can be compared piece by piece: `merge_comparisons` gives what the whole would have given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FILL_MAGNITUDE = 1e30
"""From here on a finite value is a fill value: float16 ends at 65504, and no computed output is so large."""

_EXACT_KINDS = "biuSUTOmM"
_NEGATIVE, _POSITIVE, _NOT_A_NUMBER = 1, 2, 3
_NARROW_FLOATS = ("bfloat", "float")
_NARROW_INTEGERS = ("int", "uint")


class Reason(str, Enum):
    """Why two outputs agree or do not; the first that applies, in this order."""

    MISSING = "missing"
    """The reference has the output and the other side does not."""
    UNEXPECTED = "unexpected"
    """Only the other side has it."""
    SHAPE = "shape"
    DTYPE = "dtype"
    NON_FINITE = "non-finite"
    """A NaN, an infinity or a fill value on one side only, or of the other sign."""
    NOT_EQUAL = "not-equal"
    """Integers, booleans or strings differ."""
    TOLERANCE = "tolerance"
    """A floating-point error beyond the bound."""
    AGREE = "agree"


_ORDER = {reason: place for place, reason in enumerate(Reason)}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputComparison:
    """One output of the reference against the same output of the other side."""

    name: str
    tolerance: float
    """Bound on `max_rel_error`."""
    mismatch_share: float = 0.0
    """Share of integers, booleans or strings that may differ."""
    structural: Reason | None = None
    """MISSING, UNEXPECTED, SHAPE or DTYPE: nothing was compared."""
    exact: bool = False
    """Whether the elements are integers, booleans or strings."""
    elements: int = 0
    mismatches: int = 0
    """Elements that are not equal, where `exact`."""
    non_finite_mismatches: int = 0
    nan_count: int = 0
    """In the reference."""
    infinity_count: int = 0
    """In the reference."""
    max_abs_error: float = 0.0
    """Largest absolute difference of finite elements; of integers too. 0 for strings and empty outputs."""
    scale: float = 0.0
    """The output's own size: largest finite magnitude of the reference."""
    index: tuple[int, ...] | None = None
    """Of the worst element; None where there is no element."""
    expected: str = ""
    """The reference's value there; its shape or type where `structural`."""
    found: str = ""
    piece: str = ""
    """Which piece the worst element is in, in the caller's words; empty for a whole output."""

    @property
    def max_rel_error(self) -> float:
        """`max_abs_error` over `scale`; the error itself where the reference is 0 throughout."""
        return self.max_abs_error / self.scale if self.scale > 0 else self.max_abs_error

    @property
    def reason(self) -> Reason:
        """What decides."""
        if self.structural is not None:
            return self.structural
        if self.non_finite_mismatches:
            return Reason.NON_FINITE
        if self.exact:
            allowed = math.floor(self.mismatch_share * self.elements)
            return Reason.NOT_EQUAL if self.mismatches > allowed else Reason.AGREE
        # A comparison with NaN is false, and would pass if it were asked the other way round.
        return Reason.AGREE if self.max_rel_error <= self.tolerance else Reason.TOLERANCE

    @property
    def passed(self) -> bool:
        """Whether the outputs agree."""
        return self.reason is Reason.AGREE


def compare_outputs(
    expected: Mapping[str, Any],
    found: Mapping[str, Any],
    *,
    tolerance: float,
    mismatch_share: float = 0.0,
    any_float: bool = False,
) -> list[OutputComparison]:
    """Compare all outputs of two runs on the same inputs.

    Args:
        expected: Output name -> array of the reference; a sequence or a map (as ONNX's own types give) becomes one
            output for each entry.
        found: The same of the other side.
        tolerance: Bound on the largest error over the output's own size, larger than 0.
        mismatch_share: Share of the integers, booleans or strings of an output that may differ, 0 to 1.
        any_float: Floating-point types need not be the same, as where one side was converted.

    Returns:
        One result for each output, in the reference's order, then those that only `found` has.
    """
    left, right = as_arrays(expected), as_arrays(found)
    results = []
    for name, array in left.items():
        if name not in right:
            results.append(
                OutputComparison(name=name, tolerance=tolerance, structural=Reason.MISSING, expected=_layout(array))
            )
            continue
        results.append(
            compare_output(
                name,
                array,
                right[name],
                tolerance=tolerance,
                mismatch_share=mismatch_share,
                any_float=any_float,
            )
        )
    results += [
        OutputComparison(name=name, tolerance=tolerance, structural=Reason.UNEXPECTED, found=_layout(right[name]))
        for name in right
        if name not in left
    ]
    return results


def compare_output(
    name: str,
    expected: Array,
    found: Array,
    *,
    tolerance: float,
    mismatch_share: float = 0.0,
    any_float: bool = False,
    piece: str = "",
) -> OutputComparison:
    """Compare one output; see `compare_outputs`.

    Args:
        name: Of the output.
        expected: The reference's, any shape and element type that ONNX knows.
        found: The other side's.
        tolerance: Bound on the largest error over the output's own size.
        mismatch_share: Share of integers, booleans or strings that may differ.
        any_float: Floating-point types need not be the same.
        piece: Which piece of the output this is, for the record.
    """
    base = OutputComparison(
        name=name, tolerance=tolerance, mismatch_share=mismatch_share, elements=expected.size, piece=piece
    )
    if expected.shape != found.shape:
        return replace(base, structural=Reason.SHAPE, expected=_layout(expected), found=_layout(found))
    floats = is_floating(expected.dtype) and is_floating(found.dtype)
    if not _same_type(expected.dtype, found.dtype) and not (any_float and floats):
        return replace(base, structural=Reason.DTYPE, expected=_layout(expected), found=_layout(found))
    if floats:
        return _compare_floats(base, _wide(expected), _wide(found))
    return _compare_exact(base, expected, found)


def merge_comparisons(pieces: Iterable[OutputComparison]) -> OutputComparison:
    """Join the results of one output's pieces into the result of the whole.

    Raises:
        ValueError: There is no piece, or they are of different outputs.
    """
    listed = list(pieces)
    if not listed:
        raise ValueError("no comparison to merge")
    if len({one.name for one in listed}) > 1:
        raise ValueError("comparisons of different outputs")
    return reduce(_merge_two, listed)


def as_arrays(outputs: Mapping[str, Any]) -> dict[str, Array]:
    """Outputs as arrays by name; the entries of a sequence or a map get names of their own, `y[0]`, `y[cat]`."""
    flat: dict[str, Array] = {}
    for name, value in outputs.items():
        if isinstance(value, Mapping):
            flat |= as_arrays({f"{name}[{key}]": entry for key, entry in value.items()})
        elif isinstance(value, list | tuple):
            flat |= as_arrays({f"{name}[{place}]": entry for place, entry in enumerate(value)})
        elif value is not None:
            flat[name] = np.asarray(value)
    return flat


def first_failure(results: Sequence[OutputComparison]) -> OutputComparison | None:
    """The output to name first: the gravest reason, and of several the largest relative error."""
    failed = [one for one in results if not one.passed]
    return min(failed, key=lambda one: (_ORDER[one.reason], -one.max_rel_error), default=None)


def describe_comparison(result: OutputComparison, *, other: str = "found") -> str:
    """One line for people: what differs, where, and both values.

    Args:
        result: Of one output.
        other: Who gave the values that are held against the reference's, such as "ONNX Runtime".
    """
    summary = summarize_comparison(result)
    if result.structural is not None:
        return summary
    where = f"at [{', '.join(map(str, result.index))}]" if result.index else ""
    values = f"reference {result.expected}, {other} {result.found}" if result.index is not None else ""
    place = ", ".join(filter(None, (result.piece, ": ".join(filter(None, (where, values))))))
    return f"{summary}; {place}" if place else summary


def summarize_comparison(result: OutputComparison) -> str:
    """What differs, without where."""
    reason = result.reason
    if reason is Reason.MISSING:
        return f"output {result.name} is missing ({result.expected} in the reference)"
    if reason is Reason.UNEXPECTED:
        return f"output {result.name} ({result.found}) is not the reference's"
    if reason in (Reason.SHAPE, Reason.DTYPE):
        return f"output {result.name} is {result.found}, not {result.expected}"
    if reason is Reason.NON_FINITE:
        return (
            f"output {result.name}: {result.non_finite_mismatches} of {result.elements} elements are NaN, infinite "
            f"or fill values on one side only"
        )
    if result.exact:
        return f"output {result.name}: {result.mismatches} of {result.elements} elements are not equal"
    return f"output {result.name}: largest error {result.max_rel_error:.2e} of its size {result.scale:g}"


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether a type is floating point, complex numbers and the narrow types of ml_dtypes among them."""
    # ml_dtypes registers its types as kind V or f, depending on its version.
    return dtype.kind in "fc" or (dtype.kind == "V" and dtype.name.startswith(_NARROW_FLOATS))


def _same_type(left: np.dtype[Any], right: np.dtype[Any]) -> bool:
    texts = "OSUT"
    return left == right or (left.kind in texts and right.kind in texts)


def _wide(array: Array) -> Array:
    """As float64; complex numbers as a last axis of two."""
    if array.dtype.kind == "c":
        return np.stack([array.real, array.imag], axis=-1).astype(np.float64)
    # A signaling NaN, as wrong bytes may be, is counted by whoever compares.
    with np.errstate(invalid="ignore"):
        return array.astype(np.float64)


def _kinds(values: Array) -> NDArray[np.int8]:
    """0 for an ordinary number, else which of NaN, a huge negative and a huge positive value it is."""
    kinds = np.zeros(values.shape, dtype=np.int8)
    kinds[values <= -FILL_MAGNITUDE] = _NEGATIVE
    kinds[values >= FILL_MAGNITUDE] = _POSITIVE
    kinds[np.isnan(values)] = _NOT_A_NUMBER
    return kinds


def _compare_floats(base: OutputComparison, expected: Array, found: Array) -> OutputComparison:
    shape = expected.shape
    # Masks of arrays of rank 0 are scalars, which take no assignment.
    expected, found = expected.reshape(-1), found.reshape(-1)
    kinds = _kinds(expected)
    ordinary = kinds == 0
    infinite = np.isinf(expected)
    differing = kinds != _kinds(found)
    huge = (kinds == _NEGATIVE) | (kinds == _POSITIVE)
    if huge.any():
        # An infinity and a fill value are not the same, nor are two fill values far from each other.
        differing |= huge & (infinite != np.isinf(found))
        fills = huge & ~infinite & ~differing
        differing[fills] = np.abs(expected[fills] / found[fills] - 1) > base.tolerance
    done = replace(
        base,
        nan_count=int(np.isnan(expected).sum()),
        infinity_count=int(infinite.sum()),
        scale=float(np.abs(expected[ordinary]).max(initial=0.0)),
        non_finite_mismatches=int(differing.sum()),
    )
    comparable = ordinary & ~differing
    difference = np.zeros(expected.shape)
    difference[comparable] = np.abs(expected[comparable] - found[comparable])
    done = replace(done, max_abs_error=float(difference.max(initial=0.0)))
    return _located(done, differing if differing.any() else difference, expected, found, shape)


def _compare_exact(base: OutputComparison, expected: Array, found: Array) -> OutputComparison:
    kind, shape = expected.dtype.kind, expected.shape
    expected, found = expected.reshape(-1), found.reshape(-1)
    numbers = kind in "biu" or (kind == "V" and expected.dtype.name.startswith(_NARROW_INTEGERS))
    if kind == "V" and numbers:
        expected, found = expected.astype(np.int64), found.astype(np.int64)
    differing = np.asarray(expected != found, dtype=bool)
    done = replace(base, exact=True, mismatches=int(differing.sum()))
    if not numbers:
        return _located(done, differing, expected, found, shape)
    # Differences of int64 and uint64 do not fit their own type; as float64 they are near enough to name the worst.
    left, right = expected.astype(np.float64), found.astype(np.float64)
    difference = np.where(differing, np.maximum(np.abs(left - right), np.finfo(np.float64).tiny), 0.0)
    done = replace(done, max_abs_error=float(difference.max(initial=0.0)), scale=float(np.abs(left).max(initial=0.0)))
    return _located(done, difference, expected, found, shape)


def _located(
    done: OutputComparison, badness: Array, expected: Array, found: Array, shape: tuple[int, ...]
) -> OutputComparison:
    """Name the worst element; all arrays are flat."""
    if not badness.size:
        return done
    worst = int(np.argmax(badness))
    index = np.unravel_index(worst, shape)
    return replace(
        done,
        index=tuple(int(part) for part in index),
        expected=_written(expected[worst]),
        found=_written(found[worst]),
    )


def _written(value: Any) -> str:
    if isinstance(value, bytes):
        return repr(value)
    if isinstance(value, str):
        return repr(str(value))
    return f"{float(value):.8g}" if isinstance(value, np.floating | float) else str(value)


def _layout(array: Array) -> str:
    return f"{array.dtype.name} {list(array.shape)}"


def _merge_two(left: OutputComparison, right: OutputComparison) -> OutputComparison:
    worse = max(
        (left, right),
        key=lambda one: (-_ORDER[_gravest(one)], one.max_abs_error, one.mismatches, one.index is not None),
    )
    return replace(
        worse,
        elements=left.elements + right.elements,
        mismatches=left.mismatches + right.mismatches,
        non_finite_mismatches=left.non_finite_mismatches + right.non_finite_mismatches,
        nan_count=left.nan_count + right.nan_count,
        infinity_count=left.infinity_count + right.infinity_count,
        max_abs_error=max(left.max_abs_error, right.max_abs_error),
        scale=max(left.scale, right.scale),
    )


def _gravest(one: OutputComparison) -> Reason:
    """The reason without the bound, which only the whole output's size decides."""
    if one.structural is not None:
        return one.structural
    if one.non_finite_mismatches:
        return Reason.NON_FINITE
    return Reason.AGREE
