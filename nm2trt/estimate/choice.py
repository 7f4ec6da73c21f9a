"""Whether TensorRT's builder, which times both kernels and keeps the faster, would end up with the sparse one."""

from __future__ import annotations

from typing import Literal

Expectation = Literal["likely", "open", "unlikely"]

_EXPECTED, _LIKELY, _UNLIKELY = 1.05, 1.09, 1.03
"""Read off gains estimated for layers held back: below 1.05 the dense kernel mostly stayed, and between 1.03 and 1.09
it went both ways, among layers of one shape, too."""


def expects_sparse(gain: float) -> bool:
    """The better guess, where one is needed.

    Args:
        gain: Estimated dense over sparse kernel time of an eligible layer.
    """
    return gain > _EXPECTED


def hint_for(gain: float) -> Expectation:
    """The guess, or "open" where the estimate is too close to call; argument as `expects_sparse`."""
    if gain > _LIKELY:
        return "likely"
    return "unlikely" if gain < _UNLIKELY else "open"
