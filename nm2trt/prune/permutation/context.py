"""What the rules for ONNX operators share: the ties they write to, and careful access to a node's parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from nm2trt.onnx_tools.constants import resolve
from nm2trt.prune.permutation.channels import ChannelTies, rank_of, size_of
from nm2trt.prune.permutation.reshape_ties import Reshapes


class NotTied(Exception):  # noqa: N818 -- a signal between rules and their caller
    """A rule does not cover this use of its operator; the message says why, where that helps."""


class RuleContext:
    """What rules work on."""

    def __init__(self, ties: ChannelTies, path: Path) -> None:
        self.ties = ties
        self.path = path
        self.reshapes = Reshapes(ties)

    def constant(self, node: ir.Node, index: int) -> list[int] | None:
        """Values of a constant integer input; None where the input is absent.

        Raises:
            NotTied: The input is computed.
        """
        value = input_of(node, index)
        if value is None:
            return None
        found = resolve(value, self.path)
        if found is None:
            raise NotTied
        return [int(item) for item in np.asarray(found.value()).reshape(-1)]

    def broadcast(self, x: ir.Value | None, y: ir.Value) -> None:
        """Tie the axes of x to those of y that numpy's broadcasting puts them on."""
        if x is None:
            return
        x_rank, y_rank = known_rank(x), known_rank(y)
        self.ties.mentioned.add(x)
        for axis in range(x_rank):
            if size_of(x, axis) != 1:
                if y_rank < x_rank:
                    raise NotTied
                self.ties.same(x, axis, y, axis + y_rank - x_rank)


Rule = Callable[[RuleContext, ir.Node], None]


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def data_of(node: ir.Node, index: int = 0) -> ir.Value:
    """An input that the rule needs; `NotTied` where it is left out."""
    value = input_of(node, index)
    if value is None:
        raise NotTied
    return value


def known_rank(value: ir.Value) -> int:
    """Number of axes; `NotTied` where it is unknown."""
    rank = rank_of(value)
    if rank is None:
        raise NotTied(f"the shape of {value.name!r} is unknown")
    return rank


def int_of(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    return node.attributes[name].as_int() if name in node.attributes else default


def axes_argument(context: RuleContext, node: ir.Node) -> list[int] | None:
    """Axes from the attribute of old operator sets or the second input of new ones."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    return context.constant(node, 1)


def known_sizes(value: ir.Value) -> list[int]:
    """All sizes; `NotTied` where one is unknown."""
    sizes = [size_of(value, axis) for axis in range(known_rank(value))]
    if any(size is None for size in sizes):
        raise NotTied(f"the shape of {value.name!r} is not fully known")
    return [size for size in sizes if size is not None]


def tie_images(context: RuleContext, x: ir.Value, y: ir.Value, *, tie_channels: bool = True) -> None:
    """Batch tied, channels tied if asked for, spatial axes held: what convolutions and pools have in common."""
    ties = context.ties
    ties.same(x, 0, y, 0)
    if tie_channels:
        ties.same(x, 1, y, 1)
    for value in (x, y):
        for axis in range(2, known_rank(value)):
            ties.fix(value, axis, f"axis {axis} of {value.name!r} is spatial")
