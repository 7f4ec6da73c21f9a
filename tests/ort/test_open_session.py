"""Sessions of graphs on which ONNX Runtime's own optimizations end the process."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from nm2trt.errors import InputError
from nm2trt.ort import SessionError, find_safe_level, open_session, run_session

ROOT = Path(__file__).parents[2]


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
    script = f"from nm2trt.ort import open_session\nopen_session({content})"
    # In a process of its own: a crash of this one would be no test result.
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_other_graphs_keep_all_optimizations() -> None:
    levels = onnxruntime.GraphOptimizationLevel
    plain = _model(TensorProto.FLOAT, transposes=False).SerializeToString()
    assert open_session(plain).get_session_options().graph_optimization_level == levels.ORT_ENABLE_ALL
    risky = _model(TensorProto.FLOAT).SerializeToString()
    assert open_session(risky).get_session_options().graph_optimization_level == levels.ORT_ENABLE_BASIC
    unoptimized = open_session(risky, level="none").get_session_options()
    assert unoptimized.graph_optimization_level == levels.ORT_DISABLE_ALL


def test_options_reach_the_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    content = _model(TensorProto.FLOAT, transposes=False).SerializeToString()
    default = open_session(content).get_session_options()
    assert default.intra_op_num_threads == 3
    assert default.enable_cpu_mem_arena
    options = open_session(
        content,
        threads=1,
        arena=False,
        entries={"session.disable_quant_qdq": "1"},
        profile_prefix=str(tmp_path / "timed"),
    ).get_session_options()
    assert options.intra_op_num_threads == 1
    assert not options.enable_cpu_mem_arena
    assert options.get_session_config_entry("session.disable_quant_qdq") == "1"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.enable_profiling


def test_what_onnxruntime_refuses_is_an_input_error_of_one_line(tmp_path: Path) -> None:
    model = _model(TensorProto.FLOAT, transposes=False)
    session = open_session(model.SerializeToString())
    assert run_session(session, {"x": np.zeros((1, 2, 16), np.float32)})["y"].shape == (1, 2, 16)
    with pytest.raises(SessionError, match="ONNX Runtime cannot run the batch: ") as caught:
        run_session(session, {"x": np.zeros((1, 2, 15), np.float32)}, where="a.onnx")
    assert str(caught.value).startswith("a.onnx: ")
    assert caught.value.reason
    assert "ONNXRuntimeError" not in str(caught.value)
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(SessionError, match=r"ONNX Runtime refuses the model: .*NoSuchOperator") as caught:
        open_session(model.SerializeToString(), where="b.onnx")
    assert isinstance(caught.value, InputError)
    assert "ONNXRuntimeError" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failed_node_is_named() -> None:
    x_shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "k"])
    weight = numpy_helper.from_array(np.zeros((4, 2), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="the product")
    graph = helper.make_graph([node], "one", [x_shape], [helper.make_tensor_value_info("y", 1, None)], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(SessionError) as caught:
        run_session(open_session(model.SerializeToString()), {"x": np.zeros((3, 5), np.float32)})
    assert "node the product (MatMul): " in caught.value.reason


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


OPENS_ITS_OWN = {
    "nm2trt/ort/open_session.py": "the one opener",
    "nm2trt/serve/python_model.py": "copied to a server that has no nm2trt",
}


def test_no_other_module_opens_a_session() -> None:
    words = ("InferenceSession", "SessionOptions")
    sources = [path for folder in ("nm2trt", "calibration", "training") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 300
    found = set()
    for path in sources:
        text = path.read_text(encoding="utf-8")
        # Parsing all of them takes seconds.
        tree = ast.parse(text if any(word in text for word in words) else "")
        for node in ast.walk(tree):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if isinstance(node, ast.ImportFrom) and any(alias.name == "InferenceSession" for alias in node.names):
                name = "InferenceSession"
            if name in words:
                found.add(path.relative_to(ROOT).as_posix())
    assert found == set(OPENS_ITS_OWN)
