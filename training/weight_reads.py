"""Every operand that an operator may take for its weight, told while a `WeightReads` is active."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

# Position of the weight among the arguments, and the axis that is reduced.
_OPERATORS: dict[Any, tuple[int, int, str]] = {
    F.linear: (1, -1, "weight"),
    F.conv1d: (1, 1, "weight"),
    F.conv2d: (1, 1, "weight"),
    F.conv3d: (1, 1, "weight"),
    torch.conv1d: (1, 1, "weight"),
    torch.conv2d: (1, 1, "weight"),
    torch.conv3d: (1, 1, "weight"),
    torch.addmm: (2, -2, "mat2"),
    torch.Tensor.addmm: (2, -2, "mat2"),
    torch.baddbmm: (2, -2, "batch2"),
}
_PRODUCTS = {
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.__rmatmul__,
    torch.Tensor.mm,
    torch.Tensor.bmm,
}
_LOOKUPS = {F.embedding: 1, F.embedding_bag: 1}

See = Callable[[str, torch.Tensor, "int | None"], None]
"""Called with the operator's name, the operand, and the axis that is reduced (None for a lookup)."""


class WeightReads(TorchFunctionMode):
    """Tells of every operand that a product may take for its weight, while it is active."""

    def __init__(self, see: See) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _OPERATORS:
            position, axis, keyword = _OPERATORS[func]
            self._tell(func, args[position] if len(args) > position else kwargs.get(keyword), axis)
        elif func in _PRODUCTS and len(args) > 1:
            left, right = (args[1], args[0]) if func is torch.Tensor.__rmatmul__ else (args[0], args[1])
            self._tell(func, left, -1)
            self._tell(func, right, -2 if getattr(right, "ndim", 0) > 1 else -1)
        elif func in _LOOKUPS:
            position = _LOOKUPS[func]
            self._tell(func, args[position] if len(args) > position else kwargs.get("weight"), None)
        elif func is torch.einsum:
            for operand, axis in _einsum_operands(args):
                self._tell(func, operand, axis)
        return func(*args, **kwargs)

    def _tell(self, func: Any, operand: Any, axis: int | None) -> None:
        if isinstance(operand, torch.Tensor) and operand.ndim >= 2:
            name = getattr(func, "__name__", str(func)).strip("_")
            self._see(name, operand, axis if axis is None else axis % operand.ndim)


def _einsum_operands(args: tuple[Any, ...]) -> Iterator[tuple[Any, int]]:
    """The operands of an einsum that are summed along one axis, with that axis."""
    if not args or not isinstance(args[0], str):
        return
    operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
    inputs, arrow, output = args[0].replace(" ", "").partition("->")
    if not arrow:
        output = "".join(label for label in inputs if inputs.count(label) == 1)
    for labels, operand in zip(inputs.split(","), operands, strict=False):
        summed = [label for label in labels if label.isalpha() and label not in output]
        if len(summed) == 1:
            # Labels behind "..." count from the end.
            place = labels.index(summed[0])
            yield operand, place - len(labels) if "..." in labels[:place] else place
