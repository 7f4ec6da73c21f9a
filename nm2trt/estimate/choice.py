"""Whether TensorRT's builder, which times both kernels and keeps the faster, would end up with the sparse one."""

from __future__ import annotations

from typing import Literal

Expectation = Literal["likely", "open", "unlikely"]

_TIE = 0.06
"""Estimated gains closer to 1 than this went either way in the record."""


def expects_sparse(gain: float) -> bool:
    """The better guess, where one is needed.

    Args:
        gain: Estimated dense over sparse kernel time of an eligible layer.
    """
    return gain > 1.0


def hint_for(gain: float) -> Expectation:
    """The guess, or "open" where the estimate is too close to call; argument as `expects_sparse`."""
    if gain > 1 + _TIE:
        return "likely"
    return "unlikely" if gain < 1 - _TIE / 3 else "open"
