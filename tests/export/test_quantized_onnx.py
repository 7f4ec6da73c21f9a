"""Quantized files of ONNX Runtime: biases as floats to the last bit, and words that name what cannot be taken."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from small_graphs import model_of, value

from nm2trt.errors import InputError
from nm2trt.export import export_source
from nm2trt.export.foreign import load_onnx
from nm2trt.export.numerics import tolerance_of
from nm2trt.export.quantized import check_tensorrt_takes

RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 8, 6, 6)).astype(np.float32)
node = helper.make_node


def float_model(path):
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], name="c"), node("Relu", ["c"], ["r"], name="r"),
        node("GlobalAveragePool", ["r"], ["p"], name="p"), node("Flatten", ["p"], ["f"], name="f"),
        node("Gemm", ["f", "v", "d"], ["y"], transB=1, name="fc"),
    ]  # fmt: skip
    arrays = {"w": (16, 8, 3, 3), "b": (16,), "v": (4, 16), "d": (4,)}
    weights = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()}
    onnx.save(model_of(nodes, weights, [value("x", ["n", 8, 6, 6])], [value("y", ["n", 4])], opset=17), path)
    return path


def static(folder, *, symmetric=True, **options):
    from onnxruntime.quantization import quantize_static

    class Reader:
        def __init__(self):
            self.left = [{"x": X}]

        def get_next(self):
            return self.left.pop() if self.left else None

    extra = {"ActivationSymmetric": symmetric, "WeightSymmetric": True}
    quantize_static(float_model(folder / "f.onnx"), folder / "q.onnx", Reader(), extra_options=extra, **options)
    return folder / "q.onnx"


def run(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]


@pytest.mark.parametrize("per_channel", [True, False])
def test_int32_biases_become_the_floats_that_they_stand_for(per_channel, tmp_path):
    path = static(tmp_path, per_channel=per_channel)
    with pytest.raises(InputError, match=r"2 INT32 biases .*--float-bias.*--resymmetrize"):
        check_tensorrt_takes(load_onnx(path).model, path)
    exported = export_source(path, float_bias=True)
    check_tensorrt_takes(exported.model, path)
    exported.write(tmp_path / "o.onnx")
    before, after = onnx.load(path), onnx.load(tmp_path / "o.onnx")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.graph.initializer}
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    biases = [
        one
        for one in before.graph.node
        if one.op_type == "DequantizeLinear" and one.input[0].endswith("bias_quantized")
    ]
    biases = biases or [one for one in before.graph.node if stored.get(one.input[0], np.zeros(0)).dtype == np.int32]
    assert len(biases) == 2
    for one in biases:
        right = [
            np.float32(i) * s
            for i, s in zip(
                stored[one.input[0]], np.broadcast_to(stored[one.input[1]], stored[one.input[0]].shape), strict=True
            )
        ]
        assert found[one.output[0]].tolist() == [float(v) for v in right]
    assert np.array_equal(run(path), run(tmp_path / "o.onnx"))


def test_zero_points_are_named_before_a_build(tmp_path):
    path = static(tmp_path, symmetric=False)
    with pytest.raises(InputError, match=r"asymmetrically: .* zero point -?\d+.*--resymmetrize"):
        check_tensorrt_takes(load_onnx(path).model, path)


@pytest.mark.parametrize(("kind", "words"), [("dynamic", "quantize_dynamic"), ("operators", "QOperator")])
def test_integer_operators_are_told_by_the_tool_that_writes_them(kind, words, tmp_path):
    from onnxruntime.quantization import QuantFormat, quantize_dynamic

    if kind == "dynamic":
        path = tmp_path / "q.onnx"
        quantize_dynamic(float_model(tmp_path / "f.onnx"), path, op_types_to_quantize=["MatMul", "Gemm"])
    else:
        path = static(tmp_path, quant_format=QuantFormat.QOperator)
    with pytest.raises(InputError, match=rf"integer operators .*{words}.*calibrate the float model"):
        load_onnx(path)


def test_a_quantized_file_is_bound_by_what_it_is(tmp_path):
    exported = export_source(static(tmp_path))
    assert exported.tolerance == tolerance_of("int8")
    assert export_source(tmp_path / "f.onnx").tolerance == tolerance_of("fp32")


def test_nameless_nodes_are_named_in_what_is_built(tmp_path):
    model = onnx.load(float_model(tmp_path / "f.onnx"))
    for one in model.graph.node:
        one.name = ""
    onnx.save(model, tmp_path / "m.onnx")
    exported = export_source(tmp_path / "m.onnx")
    exported.write(tmp_path / "o.onnx")
    assert [one.name for one in onnx.load(tmp_path / "o.onnx").graph.node] == ["c", "r", "p", "f", "y"]
    assert any("5" in note and "name" in note for note in exported.notes)
