"""The strongest N:M pattern that a weight holds."""

from __future__ import annotations

from nm2trt.pattern import NMPattern
from nm2trt.verify.values import Values

_MOST_KEPT = {2: 1, 4: 3, 8: 4, 16: 8, 32: 16}
"""By group size. Larger patterns hold by accident: half of the weights zero at random makes most 32 hold 22:32."""


def strongest_pattern(values: Values, axis: int, size: int) -> NMPattern | None:
    """Find the pattern that keeps the fewest weights; of equals the one with the smallest groups.

    Args:
        values: Of the weight.
        axis: The reduction axis.
        size: Weights along it that belong together; M has to divide it.

    Returns:
        None where neither 3:4 nor a pattern of at most half the weights holds for groups of 2, 4, 8, 16 or 32.
    """
    held = []
    for m, most in _MOST_KEPT.items():
        if size % m == 0:
            # Any N serves to count; the largest number of non-zeros in a group is what is asked for.
            largest = values.count(NMPattern(1, m), axis).largest
            if largest <= most:
                held.append(NMPattern(max(largest, 1), m))
    return min(held, key=lambda pattern: (pattern.density, pattern.m), default=None)
