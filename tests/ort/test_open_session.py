"""Sessions of graphs on which ONNX Runtime's own optimizations end the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from nm2trt.ort import find_safe_level, open_session


def _model(float_type: int, *, cast_from: int | None = None, transposes: bool = True) -> onnx.ModelProto:
    """x_MNK, its first axes swapped, times a constant; in float16 ONNX Runtime's CPU puts a Cast between."""
    rng = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(float_type)
    nodes, last = [], "x"
    if transposes:
        nodes.append(helper.make_node("Transpose", [last], ["swapped"], perm=[1, 0, 2]))
        last = "swapped"
    if cast_from is not None:
        nodes.append(helper.make_node("Cast", [last], ["cast"], to=float_type))
        last = "cast"
    nodes.append(helper.make_node("MatMul", [last, "w"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", cast_from or float_type, ["n", "m", 16])],
        [helper.make_tensor_value_info("y", float_type, None)],
        [numpy_helper.from_array(rng.standard_normal((16, 16)).astype(dtype), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        _model(TensorProto.FLOAT16),
        _model(TensorProto.FLOAT, cast_from=TensorProto.DOUBLE),
        _model(TensorProto.FLOAT, cast_from=TensorProto.INT32),
    ],
    ids=["float16", "double", "int32"],
)
def test_a_cast_between_transpose_and_product_does_not_end_the_process(
    model: onnx.ModelProto, tmp_path: Path, as_file: bool
) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(model, file)
    content = repr(str(file)) if as_file else f"open({str(file)!r}, 'rb').read()"
    script = (
        f"import onnxruntime as o\nfrom nm2trt.ort import open_session\nopen_session({content}, o.SessionOptions())"
    )
    # In a process of its own: a crash of this one would be no test result.
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_other_graphs_keep_all_optimizations() -> None:
    options = onnxruntime.SessionOptions()
    open_session(_model(TensorProto.FLOAT, transposes=False).SerializeToString(), options)
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    open_session(_model(TensorProto.FLOAT).SerializeToString(), options)
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def test_the_safe_level_is_one_at_which_a_session_can_be_made(tmp_path: Path) -> None:
    model = _model(TensorProto.FLOAT16)
    level = find_safe_level(model.SerializeToString())
    file = tmp_path / "model.onnx"
    onnx.save(model, file)
    name = {"all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "basic": "ORT_ENABLE_BASIC"}[level]
    script = (
        "import onnxruntime as o\noptions = o.SessionOptions()\n"
        f"options.graph_optimization_level = o.GraphOptimizationLevel.{name}\n"
        f"o.InferenceSession({str(file)!r}, options, providers=['CPUExecutionProvider'])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0
    assert find_safe_level(_model(TensorProto.FLOAT, transposes=False).SerializeToString()) == "all"
    assert find_safe_level(_model(TensorProto.FLOAT).SerializeToString()) == "all"
