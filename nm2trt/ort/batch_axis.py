"""Which axis of an output counts the samples: found by running a network at two batch sizes."""

from __future__ import annotations

from collections.abc import Mapping


def find_batch_axis(shapes: Mapping[int, tuple[int, ...]]) -> int | None:
    """The only axis that is as long as the batch, whatever the batch.

    Args:
        shapes: Batch size -> the output's shape at it, of two sizes or more.

    Returns:
        None where no axis follows the batch one to one: a mean over it, [batch * boxes, 4], what NMS selects, or one
        size alone.
    """
    if len(shapes) < 2 or len({len(shape) for shape in shapes.values()}) > 1:
        return None
    sizes, columns = list(shapes), list(zip(*shapes.values(), strict=True))
    varying = [axis for axis, lengths in enumerate(columns) if len(set(lengths)) > 1]
    if len(varying) != 1 or list(columns[varying[0]]) != sizes:
        return None
    return varying[0]
