"""Which channels of a tensor a layer's output is, through the Concat, Reshape and Split of a detector's head.

A head may join its box branch and its class branch for one Reshape and cut them apart again. What lies behind the one
part does not lie behind the other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

Part = tuple[int, int] | None
"""First channel and the one behind the last, on axis 1; None where it is all channels, or not known."""

_CHANNEL_AXIS = 1
_KEEPING = ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Sigmoid", "Relu")
_SIZES = ("Shape", "Size")
_DEFAULT = ("", "ai.onnx")


def parts_behind(reader: ir.Node, value: ir.Value, part: Part) -> Iterator[tuple[ir.Value, Part]]:
    """Outputs of a node that hold something of some channels of one of its inputs, and which of their channels."""
    known = reader.op_type if reader.domain in _DEFAULT else ""
    if known in _SIZES:
        # How large something is holds nothing of what is in it.
        return
    if known == "Concat":
        yield reader.outputs[0], _joined(reader, value, part)
    elif known in _KEEPING or (known == "Reshape" and _keeps_channels(reader, value)):
        yield reader.outputs[0], part
    elif known == "Split" and part is not None and (sizes := _split_sizes(reader)):
        start = 0
        for output, size in zip(reader.outputs, sizes, strict=False):
            if start < part[1] and part[0] < start + size:
                yield output, (max(part[0] - start, 0), min(part[1] - start, size))
            start += size
    elif known == "Slice" and part is not None and (cut := _slice_range(reader)) is not None:
        if cut[0] < part[1] and part[0] < cut[1]:
            yield reader.outputs[0], (max(part[0], cut[0]) - cut[0], min(part[1], cut[1]) - cut[0])
    else:
        yield from ((output, None) for output in reader.outputs)


def _joined(reader: ir.Node, value: ir.Value, part: Part) -> Part:
    if reader.attributes["axis"].as_int() != _CHANNEL_AXIS:
        return part
    start = 0
    for source in reader.inputs:
        size = None if source is None else _channels(source)
        if source is value:
            if part is not None:
                return start + part[0], start + part[1]
            return None if size is None else (start, start + size)
        if size is None:
            return None
        start += size
    return None


def _channels(value: ir.Value) -> int | None:
    channels = value.shape[_CHANNEL_AXIS] if value.shape is not None and len(value.shape) > _CHANNEL_AXIS else None
    if isinstance(channels, int):
        return channels
    producer = value.producer()
    if producer is None:
        return None
    if producer.op_type == "Conv" and producer.inputs[1] is not None and producer.inputs[1].shape is not None:
        size = producer.inputs[1].shape[0]
        return size if isinstance(size, int) else None
    if producer.op_type == "Concat" and producer.attributes["axis"].as_int() == _CHANNEL_AXIS:
        sizes = [None if source is None else _channels(source) for source in producer.inputs]
        return None if None in sizes else sum(size for size in sizes if size is not None)
    if producer.op_type in _KEEPING and producer.inputs[0] is not None:
        return _channels(producer.inputs[0])
    return None


def _keeps_channels(reader: ir.Node, value: ir.Value) -> bool:
    before = _channels(value)
    if before is None or value is not reader.inputs[0]:
        return False
    shape = reader.outputs[0].shape
    if shape is not None and len(shape) > _CHANNEL_AXIS and isinstance(shape[_CHANNEL_AXIS], int):
        return shape[_CHANNEL_AXIS] == before
    target = reader.inputs[1]
    sizes = _numbers(target)
    if sizes is not None:
        return len(sizes) > _CHANNEL_AXIS and sizes[_CHANNEL_AXIS] in (0, before)
    producer = target.producer() if target is not None else None
    # [batch, channels, -1], its batch computed.
    if producer is None or producer.op_type != "Concat" or len(producer.inputs) <= _CHANNEL_AXIS:
        return False
    return _numbers(producer.inputs[_CHANNEL_AXIS]) == [before]


def _split_sizes(reader: ir.Node) -> list[int] | None:
    axis = reader.attributes.get("axis")
    if axis is None or axis.as_int() != _CHANNEL_AXIS:
        return None
    if "split" in reader.attributes:
        return list(reader.attributes["split"].as_ints())
    return _numbers(reader.inputs[1]) if len(reader.inputs) > 1 else None


def _slice_range(reader: ir.Node) -> tuple[int, int] | None:
    """Channels that a Slice of opset 10 and newer keeps; None where it cuts another axis, or by numbers not known."""
    given = [_numbers(value) for value in reader.inputs[1:]]
    if len(given) < 3 or given[2] != [_CHANNEL_AXIS] or (len(given) > 3 and given[3] not in (None, [1])):
        return None
    starts, ends = given[0], given[1]
    if starts is None or ends is None or starts[0] < 0 or ends[0] < 0:
        return None
    return starts[0], ends[0]


def _numbers(value: ir.Value | None) -> list[int] | None:
    tensor = None if value is None else value.const_value
    producer = None if value is None else value.producer()
    if tensor is None and producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        tensor = producer.attributes["value"].as_tensor()
    return None if tensor is None else [int(number) for number in np.atleast_1d(tensor.numpy())]
