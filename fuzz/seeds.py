"""Small valid files of every format that `nm2trt verify` reads; what the fuzzers start from."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save


def _weight(*shape: int, dtype: type = np.float32) -> np.ndarray:
    weight = np.random.default_rng(0).standard_normal(shape)
    weight.reshape(-1)[::2] = 0
    return weight.astype(dtype)


def _safetensors() -> bytes:
    tensors = {"conv.weight": _weight(8, 8, 3, 3), "fc.weight": _weight(8, 16, dtype=np.float16)}
    tensors |= {"fc.__weight_mma_mask": np.ones((8, 16), bool), "q.weight": _weight(4, 8, dtype=np.int8)}
    return save(tensors, {"nm2trt.patterns": '{"conv.weight": "2:4"}', "nm2trt.method": "sr-ste"})


def _torch(*, zipped: bool) -> bytes:
    network = {"fc.weight": torch.from_numpy(_weight(8, 16)), "half": torch.ones(4, 8, dtype=torch.bfloat16)}
    buffer = io.BytesIO()
    torch.save({"state_dict": network, "epoch": 3}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _npz(*, packed: bool) -> bytes:
    buffer = io.BytesIO()
    write = np.savez_compressed if packed else np.savez
    write(buffer, w=_weight(8, 16), v=np.asfortranarray(_weight(4, 8)), b=_weight(8))
    return buffer.getvalue()


def _onnx() -> bytes:
    body = [helper.make_node("Gemm", ["a", "b"], ["c"], transB=1)]
    function = helper.make_function("local", "Linear", ["a", "b"], ["c"], body, [helper.make_opsetid("", 21)])
    output = helper.make_tensor_value_info("i", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["i"])], "branch", [], [output])
    nodes = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(_weight(8, 8, 3, 3), "k")),
        helper.make_node("Conv", ["x", "k"], ["c0"], group=1),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["f"], axis=0),
        helper.make_node("Transpose", ["f"], ["t"], perm=[1, 0]),
        helper.make_node("Reshape", ["t", "p"], ["r"]),
        helper.make_node("MatMul", ["x", "r"], ["m"]),
        helper.make_node("If", ["flag"], ["o"], then_branch=branch, else_branch=branch),
        helper.make_node("Linear", ["o", "w"], ["y"], domain="local"),
    ]
    tensors = {
        "w": _weight(16, 32),
        "q": _weight(4, 8, dtype=np.int8),
        "s": _weight(4),
        "z": np.zeros(4, np.int8),
        "p": np.array([8, -1]),
        "flag": np.array(True),
        "i4": np.zeros((4, 4), ml_dtypes.int4),
    }
    initializers = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)], [], initializers
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10).SerializeToString()


def _onnx_external() -> bytes:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(4, 8), data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", "32"), ("length", "128")):
        weight.external_data.add(key=key, value=value)
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [], [], [weight])
    model: onnx.ModelProto = helper.make_model(graph)
    return bytes(model.SerializeToString())


def _index() -> bytes:
    names = ("conv.weight", "fc.weight", "fc.__weight_mma_mask", "q.weight")
    return json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "shard.safetensors")}).encode()


SEEDS: dict[str, Callable[[], bytes]] = {
    "model.safetensors": _safetensors,
    "model.safetensors.index.json": _index,
    "zip.pt": lambda: _torch(zipped=True),
    "legacy.pt": lambda: _torch(zipped=False),
    "stored.npz": lambda: _npz(packed=False),
    "packed.npz": lambda: _npz(packed=True),
    "model.onnx": _onnx,
    "external.onnx": _onnx_external,
}


def write_neighbors(folder: Path) -> None:
    """The files that a seed refers to."""
    (folder / "shard.safetensors").write_bytes(_safetensors())
    (folder / "weights.bin").write_bytes(bytes(160))
