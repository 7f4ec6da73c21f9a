"""Whether an answer is the network's: `nm2trt.ort`'s rules, with each output's size taken over all samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from nm2trt.ort import OutputComparison, compare_output, compare_outputs
from nm2trt.serve.draw import Array
from nm2trt.serve.samples import Feed


def output_scales(references: Iterable[Feed]) -> dict[str, float]:
    """Largest finite magnitude of each output over several answers: one small answer alone sets no bound.

    Args:
        references: Right answers, output name -> array.
    """
    scales: dict[str, float] = {}
    for outputs in references:
        for name, value in outputs.items():
            scale = compare_output(name, value, value, tolerance=1.0).scale
            scales[name] = max(scale, scales.get(name, 0.0))
    return scales


def compare_answer(
    expected: Feed, found: Feed, *, tolerance: float, scales: Mapping[str, float]
) -> list[OutputComparison]:
    """Compare one answer; an empty list where not a bit differs.

    Args:
        expected: Output name -> array.
        found: The same of the server.
        tolerance: Bound on the largest error over the output's size.
        scales: Size of each output, of `output_scales`.
    """
    if expected.keys() == found.keys() and all(_identical(value, found[name]) for name, value in expected.items()):
        return []
    return [rescale(one, scales) for one in compare_outputs(expected, found, tolerance=tolerance)]


def rescale(one: OutputComparison, scales: Mapping[str, float]) -> OutputComparison:
    """The same comparison, held against the output's size over all samples."""
    return replace(one, scale=max(one.scale, scales.get(one.name, 0.0)))


def _identical(left: Array, right: Array) -> bool:
    # NaN is not equal to itself: it goes the long way.
    return left.shape == right.shape and left.dtype == right.dtype and bool((left == right).all())
