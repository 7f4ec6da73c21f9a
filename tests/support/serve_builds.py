"""Hand-made build folders for packaging tests, and a real Triton; imported as `from serve_builds import ...`."""

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import REPOSITORY
from onnx import TensorProto, helper, numpy_helper
from small_networks import build_document, small_network

from nm2trt.artifacts import BatchRange, EngineRecord, FileRecord, GraphPort

TABLE_ROWS = 40
TRITON = Path(os.environ.get("NM2TRT_TRITON", REPOSITORY / "build" / "triton"))

needs_triton = pytest.mark.skipif(
    not (TRITON / "bin" / "python").exists() and not TRITON.is_file(),
    reason="missing: a Triton server (make triton, or set NM2TRT_TRITON)",
)
needs_client = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("tritonclient") is None,
    reason="missing: tritonclient (pip install 'nm2trt[server]')",
)


def engine(variant, *, builder, version, sm, plan):
    return EngineRecord(
        variant=variant,
        file=f"{variant}.plan",
        builder=builder,
        builder_version=version,
        sm=sm,
        platform="linux_x86_64",
        batch=BatchRange(min=1, opt=8, max=64),
        flags=["SPARSE_WEIGHTS"] if variant == "sparse" else [],
        sha256=hashlib.sha256(plan).hexdigest(),
        size_bytes=len(plan),
        seconds=1.0,
        log=f"{variant}.log",
    )


def make_build(
    folder,
    *,
    seed=0,
    builder=None,
    version="10.13.3.9",
    sm="80",
    variants=("control", "sparse"),
    fixed_batch=None,
    data=None,
    verdict="pass",
    source="1" * 64,
    channels=8,
):
    """Write a build folder; plans are made-up bytes, which is enough for layout and configuration."""
    folder.mkdir(parents=True)
    model = small_network(seed=seed, sparse=True, batch=fixed_batch or "N", channels=channels)
    onnx.save(model, folder / "model.onnx")
    document = build_document(folder / "model.onnx")
    plans = {variant: f"plan {variant} {sm} {seed}".encode() for variant in variants} if builder else {}
    for variant, plan in plans.items():
        (folder / f"{variant}.plan").write_bytes(plan)
    records = {
        path.name: FileRecord(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size_bytes=path.stat().st_size)
        for path in folder.iterdir()
    }
    first = fixed_batch or "N"
    document.model_copy(
        update={
            "source": document.source.model_copy(update={"data": data, "sha256": source}),
            "batch": None if fixed_batch else document.batch,
            "inputs": (GraphPort(name="x", dtype="float32", shape=(first, 4, 6, 6)),),
            "outputs": (GraphPort(name="y", dtype="float32", shape=(first, channels, 1, 1)),),
            "engines": [
                engine(variant, builder=builder, version=version, sm=sm, plan=plan) for variant, plan in plans.items()
            ],
            "files": records,
            "verdict": verdict,
        }
    ).write(folder)
    return folder


def write_build(folder, model, *, batch=(1, 8, 64), data=None):
    """Write a build folder of any graph; a first dimension with a name is the batch."""
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    document = build_document(folder / "model.onnx")

    def ports(values):
        made = []
        for value in values:
            tensor = value.type.tensor_type
            shape = tuple(one.dim_param or one.dim_value for one in tensor.shape.dim)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            made.append(GraphPort(name=value.name, dtype=dtype, shape=shape))
        return tuple(made)

    inputs = ports(model.graph.input)
    free = any(isinstance(port.shape[0], str) for port in inputs if port.shape)
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    record = FileRecord(sha256=digest, size_bytes=(folder / "model.onnx").stat().st_size)
    document.model_copy(
        update={
            "source": document.source.model_copy(update={"data": data}),
            "batch": BatchRange(min=batch[0], opt=batch[1], max=batch[2]) if free else None,
            "inputs": inputs,
            "outputs": ports(model.graph.output),
            "engines": [],
            "files": {"model.onnx": record},
            "verdict": "pass",
        }
    ).write(folder)
    return folder


def token_network():
    """ids [N, 6] in a table of 40 rows -> a [N, 4], b [N, 4], class_id [N, 1]."""
    rng = np.random.default_rng(0)
    constants = {
        "table": rng.standard_normal((TABLE_ROWS, 8)).astype(np.float32),
        "wa": rng.standard_normal((8, 4)).astype(np.float32),
        "wb": rng.standard_normal((8, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "wa"], ["a"]),
        helper.make_node("MatMul", ["m", "wb"], ["b"]),
        helper.make_node("ArgMax", ["a"], ["class_id"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tokens",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 6])],
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("class_id", TensorProto.INT64, ["N", 1]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def everything(folder):
    """Path -> bytes of all files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
