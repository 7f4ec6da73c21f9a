"""Which reader a path gets."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from nm2trt.errors import InputError
from nm2trt.layers import open_layers, open_source


def write_onnx(path):
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], list(range(8)))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [weight],
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())


def write_safetensors(path):
    save_file({"w.weight": np.zeros((4, 4), np.float32)}, path)


@pytest.mark.parametrize("name", ["model.onnx", "model.bin", "model", "MODEL.ONNX"])
def test_onnx_whatever_it_is_called(name, tmp_path):
    write_onnx(tmp_path / name)
    assert open_source(tmp_path / name).kind == "onnx"
    assert [layer.node for layer in open_layers(tmp_path / name)] == ["mm"]


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "model", "model.onnx"])
def test_safetensors_whatever_it_is_called(name, tmp_path):
    write_safetensors(tmp_path / name)
    assert open_source(str(tmp_path / name)).kind == "checkpoint"


def test_run_and_build_folders(tmp_path):
    run, build = tmp_path / "run", tmp_path / "build"
    run.mkdir()
    build.mkdir()
    (run / "run.json").write_text("{}")
    (build / "build.json").write_text("{}")
    with pytest.raises(InputError, match=r"a run folder without checkpoint\.safetensors"):
        open_source(run)
    with pytest.raises(InputError, match=r"a build folder without model\.onnx"):
        open_source(build)
    write_safetensors(run / "checkpoint.safetensors")
    write_onnx(build / "model.onnx")
    assert open_source(run).path == run / "checkpoint.safetensors"
    assert open_source(build).path == build / "model.onnx"


def test_nothing_to_judge(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for path, words in (
        (tmp_path / "missing.onnx", "no such file or folder"),
        (tmp_path, "holds no checkpoint"),
        (tmp_path / "notes.txt", "is no checkpoint"),
        (tmp_path / "empty.onnx", "is no ONNX model"),
    ):
        with pytest.raises(InputError, match=words):
            open_source(path)
