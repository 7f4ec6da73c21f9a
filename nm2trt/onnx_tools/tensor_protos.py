"""Walk the tensors of an ONNX model's protobuf messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def tensor_protos(message: Any) -> Iterator[Any]:
    """Every TensorProto in a model: initializers, sparse ones, attributes, subgraphs and functions."""
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        # Map fields do not occur in onnx.proto.
        for child in value if _is_list(value) else (value,):
            if child.DESCRIPTOR.name == "TensorProto":
                yield child
            else:
                yield from tensor_protos(child)


def _is_list(value: Any) -> bool:
    return not hasattr(value, "DESCRIPTOR")
