"""A size of -1 in a file, which ONNX Runtime takes as free."""

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import nm2trt_inline
from onnx import helper
from small_graphs import model_of, value

from nm2trt.artifacts import BuildDocument
from nm2trt.errors import InputError
from nm2trt.export import InputSpec
from nm2trt.export.foreign import load_onnx


def negative(path, shape, middle=None):
    """x -> Relu -> y, with every size that is None written as dim_value -1."""
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"], name="fc")]
    weights = {"w": np.ones((16, 8), np.float32)}
    last = [*shape[:-1], 8]
    model = model_of(nodes, weights, [value("x", shape)], [value("y", last)])
    if middle is not None:
        model.graph.value_info.append(value("h", middle))
    for port in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in port.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value") and not dim.dim_param:
                dim.dim_value = -1
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("middle", [None, [None, 16]])
def test_a_negative_batch_is_free(tmp_path, middle):
    path = negative(tmp_path / "m.onnx", [None, 16], middle)
    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for options in ((), ("--batch", "1:2:4")):
        result = nm2trt_inline("export", path, "-o", tmp_path / "b", "--builder", "none", "--force", *options)
        assert result.returncode == 0, result.stderr
        build = BuildDocument.read(tmp_path / "b")
        assert build.batch is not None
        assert [type(port.shape[0]) for port in (*build.inputs, *build.outputs)] == [str, str]


def test_a_negative_size_beside_the_batch_is_open(tmp_path):
    path = negative(tmp_path / "m.onnx", [None, None, 16])
    with pytest.raises(InputError, match="open"):
        load_onnx(path)
    assert load_onnx(path, shapes=[InputSpec(name="x", shape=(5, 16))]).inputs[0].shape == (5, 16)


def test_a_fixed_batch_stays_fixed(tmp_path):
    path = negative(tmp_path / "m.onnx", [3, 16], [None, 16])
    assert not load_onnx(path).dynamic
