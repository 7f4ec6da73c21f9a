"""Plans and tensors of the double: a plan is a header and the ONNX file itself."""

from __future__ import annotations

import json
import os
import signal
import struct
from pathlib import Path
from typing import Any

import onnx
import tensorrt_bindings

from tensorrt._strict import Simulated
from tensorrt._version import faulty

MAGIC = b"tensorrt-double"
WEIGHTED = ("Conv", "MatMul", "Gemm")
_DTYPES = {
    "FLOAT": "FLOAT",
    "FLOAT16": "HALF",
    "BFLOAT16": "BF16",
    "INT64": "INT64",
    "INT32": "INT32",
    "INT8": "INT8",
    "UINT8": "UINT8",
    "BOOL": "BOOL",
}


def pack_plan(header: dict[str, Any], model: onnx.ModelProto) -> bytes:
    """Serialize."""
    words = json.dumps(header).encode()
    return MAGIC + struct.pack("<I", len(words)) + words + model.SerializeToString()


def unpack_plan(data: bytes) -> tuple[dict[str, Any], onnx.ModelProto]:
    """The opposite of `pack_plan`."""
    (size,) = struct.unpack_from("<I", data, len(MAGIC))
    start = len(MAGIC) + 4
    return json.loads(data[start : start + size]), onnx.load_from_string(data[start + size :])


def load_model(path: str) -> onnx.ModelProto:
    """Read an ONNX file with its external data."""
    return onnx.load(str(Path(path)))


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs that are no weights."""
    weights = {one.name for one in model.graph.initializer}
    return [one for one in model.graph.input if one.name not in weights]


def data_type(value: onnx.ValueInfoProto) -> Any:
    """TensorRT's type of a graph input or output."""
    name = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    return getattr(tensorrt_bindings.DataType, _DTYPES[name])


def shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Shape with -1 for what is dynamic."""
    return tuple(one.dim_value if one.HasField("dim_value") else -1 for one in value.type.tensor_type.shape.dim)


class Tensor(Simulated):
    """An input or output of a network."""

    _real_name = "ITensor"

    def __init__(self, value: onnx.ValueInfoProto, *, is_input: bool) -> None:
        self._values = {
            "name": value.name,
            "shape": tensorrt_bindings.Dims(shape_of(value)),
            "dtype": data_type(value),
            "is_shape_tensor": False,
            "is_execution_tensor": True,
            "is_network_input": is_input,
            "is_network_output": not is_input,
        }


def die_if_ordered(fault: str) -> None:
    """Be killed here."""
    if faulty(fault):
        os.kill(os.getpid(), signal.SIGKILL)
