"""Q/DQ pairs in the file: what they compute, and that zeros stay zeros."""

import int8_networks as nets
import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper

from nm2trt.calibration.collection import collect, ranges_of, scales_of
from nm2trt.calibration.graph import load_proto, open_float_graph
from nm2trt.calibration.insertion import insert, quantized_weight, weight_scales
from nm2trt.calibration.placement import PLACEMENTS, place
from nm2trt.calibration.ranges import Method
from nm2trt.calibration.sessions import Runner
from nm2trt.verify import verify_path

RNG = np.random.default_rng(3)
X = RNG.standard_normal((16, 3, 8, 8)).astype(np.float32)


def quantized(made, folder, *, placement="default", method="minmax", feed=None, **options):
    graph = open_float_graph(nets.saved(made, folder / "float.onnx"))
    checked = verify_path(folder / "float.onnx")
    sparse = {layer.name for layer in checked.layers if layer.verdict == "conforms"}
    found = place(graph, PLACEMENTS[placement], tuple(graph.layers), sparse)
    feed = feed or {"x": X}
    stats = collect(graph, found.edges, [(feed, 16)])
    scales = scales_of(ranges_of(stats, Method.parse(method)), found)
    return insert(graph, found, scales, **options), scales


def constants(made):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}


@pytest.mark.parametrize("placement", list(PLACEMENTS))
@pytest.mark.parametrize("storage", ["qdq", "int8"])
def test_the_result_is_valid_symmetric_and_free_of_integer_biases(tmp_path, placement, storage):
    made, _ = quantized(nets.residual(), tmp_path, placement=placement, storage=storage)
    onnx.checker.check_model(made, full_check=True)
    stored = constants(made)
    for node in made.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert stored[node.input[2]].dtype == np.int8
            assert not stored[node.input[2]].any()
    assert not [name for name, array in stored.items() if array.dtype == np.int32]
    assert [output.name for output in made.graph.output] == ["logits"]


def test_both_ways_to_store_weights_compute_the_same(tmp_path):
    results = []
    for storage in ("qdq", "int8"):
        made, _ = quantized(nets.residual(), tmp_path, storage=storage)
        results.append(Runner(made, "").run({"x": X})[0])
        if storage == "int8":
            assert constants(made)["c1.weight"].dtype == np.int8
    assert np.array_equal(*results)


def test_one_layer_computes_what_numpy_computes(tmp_path):
    w = RNG.standard_normal((6, 5)).astype(np.float32)
    made = nets.model(
        [nets.node("Gemm", "fc", ["x", "w"], "y", transB=1)],
        [("x", nets.FLOAT, ["n", 5])],
        [("y", nets.FLOAT, ["n", 6])],
        {"w": w},
    )
    x = RNG.standard_normal((16, 5)).astype(np.float32)
    result, scales = quantized(made, tmp_path, feed={"x": x})
    sx = np.float32(np.abs(x).max() / 127)
    assert scales["x"] == pytest.approx(sx)
    sw = np.abs(w).max(axis=1, keepdims=True) / np.float32(127)
    expected = (np.rint(x / sx) * sx) @ (np.rint(w / sw) * sw).T
    assert np.allclose(Runner(result, "").run({"x": x})[0], expected, atol=1e-5)


def test_scales_are_those_of_onnxruntime_on_the_same_samples(tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = [{"x": X}]

        def get_next(self):
            return self.left.pop() if self.left else None

    made, scales = quantized(nets.residual(), tmp_path, placement="minimal")
    peer = tmp_path / "peer.onnx"
    quantize_static(
        tmp_path / "float.onnx",
        peer,
        Reader(),
        per_channel=True,
        op_types_to_quantize=["Conv", "Gemm"],
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True},
    )
    theirs = constants(onnx.load(peer))
    # They scale activations to 255 / 2 levels and weights to 127.
    for tensor in ("x", "a", "f", "l"):
        assert scales[tensor] == pytest.approx(float(theirs[f"{tensor}_scale"]) * 127.5 / 127, rel=5e-3)
    ours = constants(made)
    assert np.allclose(ours["c1.weight_scale"], theirs["c1.weight_scale"], rtol=5e-3)


@pytest.mark.parametrize("storage", ["qdq", "int8"])
def test_every_sparse_layer_still_conforms(tmp_path, storage):
    made, _ = quantized(nets.residual(), tmp_path, placement="sparse", storage=storage)
    checked = verify_path(nets.saved(made, tmp_path / "q.onnx"))
    verdicts = {layer.name: (layer.verdict, layer.tensorrt) for layer in checked.layers}
    for name in ("c1", "c2", "c3", "c4", "proj"):
        assert verdicts[f"{name}.weight"] == ("conforms", "eligible")


@examples(60)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 8)), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from([0, 1]),
)
def test_quantized_weights_keep_zeros_and_reach_127_in_every_channel(w, axis):
    scales = weight_scales(w, axis)
    stored = quantized_weight(w, scales, axis)
    assert not stored[w == 0].any()
    assert np.abs(stored.astype(int)).max() <= 127
    moved, shown = np.moveaxis(w, axis, 0), np.moveaxis(stored, axis, 0)
    for row, quantized_row in zip(moved, shown, strict=True):
        if np.abs(row).max() > 1e-30:
            assert np.abs(quantized_row.astype(int)).max() == 127


def test_weights_behind_layout_nodes_and_in_constant_nodes_are_quantized(tmp_path):
    w = nets.two_of_four(RNG, (6, 8))
    value = onnx.helper.make_tensor("w", nets.FLOAT, w.shape, w.tobytes(), raw=True)
    made = nets.model(
        [
            onnx.helper.make_node("Constant", [], ["w"], name="k", value=value),
            nets.node("Transpose", "t", ["w"], "wt", perm=[1, 0]),
            nets.node("MatMul", "mm", ["x", "wt"], "y"),
        ],
        [("x", nets.FLOAT, ["n", 8])],
        [("y", nets.FLOAT, ["n", 6])],
        {},
    )
    x = RNG.standard_normal((16, 8)).astype(np.float32)
    for storage in ("qdq", "int8"):
        result, _ = quantized(made, tmp_path, feed={"x": x}, storage=storage)
        found = Runner(result, "").run({"x": x})[0]
        assert np.abs(found - x @ w.T).max() < 0.1
        checked = verify_path(nets.saved(result, tmp_path / "q.onnx"))
        assert [layer.verdict for layer in checked.layers] == ["conforms"]


def test_a_weight_that_two_layers_share_is_quantized_once(tmp_path):
    w = RNG.standard_normal((4, 4)).astype(np.float32)
    made = nets.model(
        [nets.node("MatMul", "m1", ["x", "w"], "a"), nets.node("MatMul", "m2", ["a", "w"], "y")],
        [("x", nets.FLOAT, ["n", 4])],
        [("y", nets.FLOAT, ["n", 4])],
        {"w": w},
    )
    x = RNG.standard_normal((16, 4)).astype(np.float32)
    result, _ = quantized(made, tmp_path, feed={"x": x}, storage="int8")
    assert [name for name in constants(result) if constants(result)[name].shape == (4, 4)] == ["w"]


def test_half_precision_graphs_get_half_precision_scales(tmp_path):
    made = nets.model(
        [nets.node("MatMul", "m", ["x", "w"], "y")],
        [("x", onnx.TensorProto.FLOAT16, ["n", 4])],
        [("y", onnx.TensorProto.FLOAT16, ["n", 4])],
        {"w": RNG.standard_normal((4, 4)).astype(np.float16)},
    )
    x = RNG.standard_normal((16, 4)).astype(np.float16)
    result, _ = quantized(made, tmp_path, feed={"x": x})
    assert constants(result)["x_scale"].dtype == np.float16
    session = onnxruntime.InferenceSession(result.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": x})[0].dtype == np.float16


def test_the_graph_is_not_changed_by_quantizing_it(tmp_path):
    path = nets.saved(nets.residual(), tmp_path / "m.onnx")
    graph = open_float_graph(path)
    before = graph.proto.SerializeToString()
    found = place(graph, PLACEMENTS["sparse"], tuple(graph.layers), {"c1.weight"})
    for storage in ("int8", "qdq"):
        insert(graph, found, dict.fromkeys(found.edges, 0.1), storage=storage)
    assert graph.proto.SerializeToString() == before == load_proto(path).SerializeToString()
