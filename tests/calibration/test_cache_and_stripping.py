"""TensorRT's old calibration caches, and models that others quantized."""

import struct

import int8_networks as nets
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from nm2trt.calibration.cache import read_cache
from nm2trt.calibration.graph import load_proto, open_float_graph
from nm2trt.calibration.sessions import Runner
from nm2trt.calibration.stripping import without_quantization
from nm2trt.errors import InputError
from nm2trt.verify import verify_path

RNG = np.random.default_rng(4)
X = RNG.standard_normal((8, 3, 8, 8)).astype(np.float32)
# As TensorRT writes it: 1/127 and 0.0186 in IEEE 754, most significant byte first.
GOLDEN = "TRT-8601-EntropyCalibration2\ninput: 3c010204\n(Unnamed Layer* 3) [Convolution]_output: 3c986ad1\n"


def test_a_golden_cache_is_read(tmp_path):
    path = tmp_path / "calibration.cache"
    path.write_text(GOLDEN)
    scales = read_cache(path)
    assert scales["input"] == pytest.approx(1 / 127, rel=1e-6)
    assert scales["(Unnamed Layer* 3) [Convolution]_output"] == struct.unpack(">f", bytes.fromhex("3c986ad1"))[0]


@given(st.dictionaries(st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1), st.floats(1e-30, 1e30)))
def test_any_scale_survives_the_way_through_the_file(tmp_path_factory, scales):
    path = tmp_path_factory.getbasetemp() / "c.cache"
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    path.write_text("\n".join(["TRT-10300-MinMaxCalibration", *lines]) + "\n")
    if not scales:
        with pytest.raises(InputError, match="no scale"):
            read_cache(path)
        return
    assert read_cache(path) == {name: float(np.float32(scale)) for name, scale in scales.items()}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "does not begin"),
        ("TRT-8601-EntropyCalibration2\n", "no scale"),
        ("TRT-8601-EntropyCalibration2\nx 3c010a14\n", "line 2"),
        ("TRT-8601-EntropyCalibration2\nx: 3c010g14\n", "line 2"),
        ("TRT-8601-EntropyCalibration2\nx: 00000000\n", "is 0"),
        ("TRT-8601-EntropyCalibration2\nx: 7fc00000\n", "is nan"),
        ("TRT-8601-EntropyCalibration2\nx: bc010a14\n", "is -0.0"),
        ('{"x": 1}', "does not begin"),
    ],
)
def test_what_is_no_cache_is_refused_by_line(tmp_path, text, word):
    path = tmp_path / "c"
    path.write_text(text)
    with pytest.raises(InputError, match=word):
        read_cache(path)


def peer_model(tmp_path, **options):
    from onnxruntime.quantization import QuantType, quantize_static

    class Reader:
        def __init__(self):
            self.left = [{"x": X}]

        def get_next(self):
            return self.left.pop() if self.left else None

    source, out = nets.saved(nets.residual(), tmp_path / "f.onnx"), tmp_path / "q.onnx"
    quantize_static(
        source, out, Reader(), op_types_to_quantize=["Conv", "Gemm"], activation_type=QuantType.QUInt8, **options
    )
    return out


@pytest.mark.parametrize("per_channel", [True, False])
def test_an_asymmetric_model_of_onnxruntime_is_named_and_taken_apart(tmp_path, per_channel):
    from onnxruntime.quantization import QuantType

    path = peer_model(tmp_path, per_channel=per_channel, weight_type=QuantType.QUInt8)
    with pytest.raises(InputError, match=r"asymmetrically: .* has zero point") as caught:
        open_float_graph(path)
    assert "--resymmetrize" in str(caught.value)
    made = without_quantization(load_proto(path), path)
    assert not {node.op_type for node in made.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    onnx.checker.check_model(made)
    before = Runner(onnx.load(tmp_path / "f.onnx"), "").run({"x": X})[0]
    after = Runner(made, "").run({"x": X})[0]
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()
    checked = verify_path(nets.saved(made, tmp_path / "s.onnx"))
    assert sum(layer.verdict == "conforms" for layer in checked.layers) == 5  # a stored zero point is 0.0 again


def test_float_weights_behind_a_third_partys_pairs_come_back_exactly(tmp_path):
    path = peer_model(tmp_path, extra_options={"AddQDQPairToWeight": True, "QuantizeBias": False})
    made = without_quantization(load_proto(path), path)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    for tensor in nets.residual().graph.initializer:
        assert np.array_equal(found[tensor.name], numpy_helper.to_array(tensor))


def test_integer_operators_cannot_be_taken_apart(tmp_path):
    made = nets.model(
        [nets.node("MatMulInteger", "m", ["x", "w"], "y")],
        [("x", onnx.TensorProto.INT8, ["n", 4])],
        [("y", onnx.TensorProto.INT32, ["n", 4])],
        {"w": np.ones((4, 4), np.int8)},
    )
    with pytest.raises(InputError, match="MatMulInteger"):
        without_quantization(made, tmp_path)
