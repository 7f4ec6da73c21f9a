"""Which integers a graph's inputs may hold: the rows of the tables that they are looked up in."""

from __future__ import annotations

import onnx_ir as ir

_FIRST_PASSED_ON = frozenset(
    (
        "Cast", "Clip", "Expand", "Flatten", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile",
        "Transpose", "Unsqueeze",
    )
)  # fmt: skip
"""What hands its first input's values on without changing them."""
_ANY_PASSED_ON = frozenset(("Concat", "Max", "Min"))
_SAME_ROWS = frozenset(("Cast", "DequantizeLinear", "Identity", "QuantizeLinear"))
_TABLES = {
    ("Gather", 1): 0,
    ("GatherBlockQuantized", 1): 0,
    # com.microsoft: tokens, segments, and positions where they are given.
    ("EmbedLayerNormalization", 0): 2,
    ("EmbedLayerNormalization", 1): 4,
    ("EmbedLayerNormalization", 7): 3,
}
"""(operator, input that is an index) -> input that is the table."""
_MOST_ROWS = 1 << 31


def index_limits(model: ir.Model) -> dict[str, int]:
    """Rows of the smallest table that each integer input is looked up in.

    Args:
        model: Any graph; its weights are not read.

    Returns:
        Input name -> rows: the input's values are 0 to below it. Inputs that index nothing are left out.
    """
    limits: dict[str, int] = {}
    for value in model.graph.inputs:
        if value.dtype not in (ir.DataType.INT64, ir.DataType.INT32) or value.is_initializer():
            continue
        rows = _smallest_table(value)
        if rows is not None:
            limits[str(value.name)] = rows
    return limits


def _smallest_table(index: ir.Value) -> int | None:
    """Follow an index to the tables it is used on, through what hands it on and what adds a constant to it."""
    found: list[int] = []
    seen: set[tuple[int, int]] = set()
    pending = [(index, 0)]
    while pending:
        value, offset = pending.pop()
        if (id(value), offset) in seen:
            continue
        seen.add((id(value), offset))
        for user, at in value.uses():
            if _hands_on(user, at):
                pending += [(output, offset) for output in user.outputs]
            elif user.op_type in ("Add", "Sub"):
                step = _constant(user.inputs[1 - at])
                if step is not None and (user.op_type == "Add" or at == 0):
                    signed = step if user.op_type == "Add" else -step
                    pending += [(output, offset + signed) for output in user.outputs]
            elif user.op_type == "OneHot" and at == 0:
                depth = _constant(user.inputs[1])
                if depth is not None:
                    found.append(depth - offset)
            elif (user.op_type, at) in _TABLES:
                rows = _rows(user, user.inputs[_TABLES[user.op_type, at]])
                if rows is not None:
                    found.append(rows - offset)
    usable = [rows for rows in found if 0 < rows < _MOST_ROWS]
    return min(usable, default=None)


def _hands_on(user: ir.Node, at: int) -> bool:
    if user.op_type == "Where":
        return at > 0
    return user.op_type in _ANY_PASSED_ON or (at == 0 and user.op_type in _FIRST_PASSED_ON)


def _rows(user: ir.Node, table: ir.Value | None) -> int | None:
    named = user.attributes.get("axis") or user.attributes.get("gather_axis")
    axis = named.as_int() if named is not None else 0
    while table is not None:
        if table.shape is not None and len(table.shape):
            size = table.shape[axis]
            return size if isinstance(size, int) else None
        producer = table.producer()
        if producer is None:
            return None
        if producer.op_type == "Constant" and "value" in producer.attributes:
            shape = producer.attributes["value"].as_tensor().shape
            return int(shape[axis]) if len(shape) else None  # type: ignore[arg-type]
        table = producer.inputs[0] if producer.op_type in _SAME_ROWS else None
    return None


def _constant(value: ir.Value | None) -> int | None:
    """A constant of one integer."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1 or not tensor.dtype.is_integer():
        return None
    return int(tensor.numpy().reshape(-1)[0])


def largest_modulus(model: ir.Model) -> int:
    """Largest constant that the graph takes remainders of, as for a hash of ids; 0: none.

    Remainders are taken of any number, so that nothing refuses one; those below the modulus give every remainder.
    """
    nodes = (node for node in model.graph.all_nodes() if node.op_type == "Mod" and len(node.inputs) > 1)
    return max((_constant(node.inputs[1]) or 0 for node in nodes), default=0)
