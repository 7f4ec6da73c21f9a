"""ONNX files of others: what is taken, and what is refused in one line."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import model_of, value, write_gemm

from nm2trt.artifacts import BatchRange
from nm2trt.errors import ConfigError, InputError
from nm2trt.export import InputSpec, check_numerics, export_source, noise, settle_batch
from nm2trt.export.foreign import load_onnx

RANGE = BatchRange(min=1, opt=4, max=8)


def test_a_file_is_taken_byte_by_byte(tmp_path):
    write_gemm(tmp_path / "m.onnx")
    network = export_source(tmp_path / "m.onnx")
    network.write(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    assert (network.precision, network.io_dtype, network.converted_to, network.dynamic) == ("fp32", "fp32", None, True)
    record = check_numerics(
        network.reference, tmp_path / "out.onnx", noise(network.inputs, 9), RANGE, tolerance=1e-5, precision="fp32"
    )
    assert record.passed
    assert "not that the file is right" in record.reference


def test_an_output_without_a_shape_gets_one(tmp_path):
    write_gemm(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "m.onnx")
    export_source(tmp_path / "m.onnx").write(tmp_path / "out.onnx")
    found = onnx.load(tmp_path / "out.onnx")
    assert found.graph.output[0].type.tensor_type.HasField("shape")
    onnx.checker.check_model(found, full_check=True)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("io_dtype", ["fp32", "same"])
def test_a_file_is_converted_where_asked(tmp_path, precision, io_dtype):
    w_NK = write_gemm(tmp_path / "m.onnx")
    network = export_source(tmp_path / "m.onnx", precision=precision, io_dtype=io_dtype)
    network.write(tmp_path / "out.onnx")
    model = onnx.load(tmp_path / "out.onnx")
    kind = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    assert [tensor.data_type for tensor in model.graph.initializer] == [kind]
    edges = {port.type.tensor_type.elem_type for port in (*model.graph.input, *model.graph.output)}
    assert edges == ({kind} if io_dtype == "same" else {TensorProto.FLOAT})
    onnx.checker.check_model(model, full_check=True)
    record = check_numerics(
        network.reference, tmp_path / "out.onnx", noise(network.inputs, 9), RANGE, tolerance=2e-2, precision=precision
    )
    assert record.passed, record
    assert record.max_rel_error > 0
    stored = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float32)
    np.testing.assert_allclose(stored, w_NK, rtol=2.0**-7)


def test_external_data_come_along(tmp_path):
    write_gemm(tmp_path / "plain.onnx")
    (tmp_path / "in").mkdir()
    onnx.save(
        onnx.load(tmp_path / "plain.onnx"),
        tmp_path / "in" / "m.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    export_source(tmp_path / "in" / "m.onnx").write(tmp_path / "out.onnx")
    x = np.ones((2, 16), np.float32)
    found, expected = (
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for name in ("out.onnx", "plain.onnx")
    )
    assert np.array_equal(found, expected)
    (tmp_path / "in" / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"weights\.bin.*missing"):
        load_onnx(tmp_path / "in" / "m.onnx")


def test_unknown_operators_are_all_named(tmp_path):
    extra = [
        helper.make_node("Foo", ["x"], ["a"], name="first", domain="acme"),
        helper.make_node("Bar", ["a"], ["b"], name="second"),
    ]
    write_gemm(tmp_path / "m.onnx", extra=extra)
    with pytest.raises(InputError, match=r"2 nodes.*first \(acme\.Foo\), second \(Bar\)"):
        load_onnx(tmp_path / "m.onnx")


def test_pairs_of_onnxruntimes_own_domain_are_told_by_the_option_that_makes_them(tmp_path):
    extra = [helper.make_node("QuantizeLinear", ["x", "s"], ["q"], domain="com.microsoft", name="pair")]
    write_gemm(tmp_path / "m.onnx", extra=extra, initializers={"s": np.ones((), np.float32)})
    with pytest.raises(InputError, match=r"pair \(com\.microsoft\.QuantizeLinear\); .*UseQDQContribOps"):
        load_onnx(tmp_path / "m.onnx")


def test_a_weight_that_is_computed_is_named_with_its_operator(tmp_path):
    masked = [helper.make_node("Mul", ["w", "mask"], ["wm"], name="pruner")]
    initializers = {"mask": np.ones((8, 16), np.float32)}
    write_gemm(tmp_path / "m.onnx", extra=masked, weight="wm", initializers=initializers)
    with pytest.raises(InputError, match=r"fc \(Gemm input 1, by Mul pruner\)"):
        load_onnx(tmp_path / "m.onnx")


def test_a_packed_weight_is_cut_into_its_parts(tmp_path):
    """As torch exports a cross-attention: one matrix, split for queries, keys and values."""
    rng = np.random.default_rng(0)
    arrays = {"packed": rng.standard_normal((24, 8)).astype(np.float32), "sizes": np.array([8, 16])}
    nodes = [
        helper.make_node("Split", ["packed", "sizes"], ["q", "kv"], axis=0, name="cut"),
        helper.make_node("Transpose", ["q"], ["q_t"], perm=[1, 0]),
        helper.make_node("Transpose", ["kv"], ["kv_t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "q_t"], ["a"], name="queries"),
        helper.make_node("MatMul", ["x", "kv_t"], ["b"], name="values"),
        helper.make_node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", 1, ["n", 8])], [info("y", 1, ["n", 24])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    export_source(tmp_path / "m.onnx").write(tmp_path / "out.onnx")
    assert "Split" not in {node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node}
    x = rng.standard_normal((3, 8)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(tmp_path / "out.onnx").run(None, {"x": x})
    np.testing.assert_allclose(found, x @ arrays["packed"].T, rtol=1e-4, atol=1e-5)


def test_a_table_that_is_computed_from_numbers_alone_is_no_weight(tmp_path):
    nodes = [
        helper.make_node("Range", ["zero", "sixteen", "one"], ["row"], name="row"),
        helper.make_node("Unsqueeze", ["row", "last"], ["column"], name="column"),
        helper.make_node("Mul", ["column", "row8"], ["angles"], name="angles"),
        helper.make_node("Cos", ["angles"], ["table"], name="cos"),
        helper.make_node("MatMul", ["x", "table"], ["y"], name="dft"),
    ]
    numbers = {
        "zero": np.float32(0), "sixteen": np.float32(16), "one": np.float32(1), "last": np.array([1]),
        "row8": np.arange(8, dtype=np.float32)[None],
    }  # fmt: skip
    onnx.save(model_of(nodes, numbers, [value("x", ["N", 16])], [value("y", ["N", 8])]), tmp_path / "m.onnx")
    assert load_onnx(tmp_path / "m.onnx").dynamic


def test_a_convolution_whose_weight_is_an_input_is_refused(tmp_path):
    conv = helper.make_node("Conv", ["x", "k"], ["y"], name="dynamic")
    shapes = [value("x", ["N", 4, 8, 8]), value("k", [8, 4, 3, 3])]
    onnx.save(model_of([conv], {}, shapes, [value("y", ["N", 8, 6, 6])]), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"dynamic \(Conv input 1, outside the graph\)"):
        load_onnx(tmp_path / "m.onnx")


def test_products_of_two_activations_are_no_weights(tmp_path):
    square = helper.make_node("MatMul", ["x", "x"], ["y"], name="attention")
    onnx.save(model_of([square], {}, [value("x", ["N", 4, 4])], [value("y", ["N", 4, 4])]), tmp_path / "m.onnx")
    assert load_onnx(tmp_path / "m.onnx").patterns == {}


def test_an_old_opset_is_refused(tmp_path):
    write_gemm(tmp_path / "m.onnx", opset=7, initializers={"b": np.zeros(8, np.float32)})
    with pytest.raises(InputError, match="opset 7 is too old"):
        load_onnx(tmp_path / "m.onnx")


def test_a_convolution_has_no_bfloat16_before_opset_22(tmp_path):
    conv = helper.make_node("Conv", ["x", "k"], ["y"], name="stem")
    kernel = {"k": np.ones((8, 4, 3, 3), np.float32)}
    model = model_of([conv], kernel, [value("x", ["N", 4, 8, 8])], [value("y", ["N", 8, 6, 6])], opset=17)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"opset 17 is too old.*stem \(Conv\)"):
        export_source(tmp_path / "m.onnx", precision="bf16")


def test_weights_beyond_float16_are_all_named(tmp_path):
    w_NK = write_gemm(tmp_path / "m.onnx", scale=1e6)
    with pytest.raises(InputError, match=r"weights beyond the largest fp16, 65504: w \(") as caught:
        export_source(tmp_path / "m.onnx", precision="fp16")
    assert f"{float(w_NK.flat[np.abs(w_NK).argmax()]):g}" in str(caught.value)
    assert export_source(tmp_path / "m.onnx", precision="bf16").precision == "bf16"


def test_activations_that_overflow_float16_are_named_although_the_outputs_hide_it(tmp_path):
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], name="wide", transB=1),
        helper.make_node("Mul", ["a", "a"], ["b"], name="square"),
        helper.make_node("Sigmoid", ["b"], ["y"], name="gate"),
    ]
    w = (np.random.default_rng(0).standard_normal((8, 16)) * 1e3).astype(np.float32)
    onnx.save(model_of(nodes, {"w": w}, [value("x", ["N", 16])], [value("y", ["N", 8])]), tmp_path / "m.onnx")
    network = export_source(tmp_path / "m.onnx", precision="fp16")
    network.write(tmp_path / "out.onnx")
    with pytest.raises(InputError, match=r"activations beyond the largest fp16, 65504, on the samples: square \("):
        check_numerics(
            network.reference,
            tmp_path / "out.onnx",
            noise(network.inputs, 9),
            RANGE,
            tolerance=1e-2,
            precision="fp16",
            probe=True,
        )


def test_a_mask_of_large_negative_numbers_is_clamped_and_no_overflow(tmp_path):
    lowest = float(np.finfo(np.float32).min)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"], name="scores"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], name="masked"),
        helper.make_node("Softmax", ["masked"], ["y"], name="softmax"),
    ]
    tensors = {"w": np.eye(4, dtype=np.float32) * 100, "mask": np.array([0, 0, 0, lowest], np.float32)}
    onnx.save(model_of(nodes, tensors, [value("x", ["N", 4])], [value("y", ["N", 4])]), tmp_path / "m.onnx")
    network = export_source(tmp_path / "m.onnx", precision="fp16")
    assert "mask" in network.notes[0]
    network.write(tmp_path / "out.onnx")
    record = check_numerics(
        network.reference,
        tmp_path / "out.onnx",
        noise(network.inputs, 9),
        RANGE,
        tolerance=1e-2,
        precision="fp16",
        probe=True,
    )
    assert record.passed, record


def test_what_onnx_knows_only_in_float32_stays_so_between_casts(tmp_path):
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["y"], name="up", mode="nearest"),
    ]
    tensors = {"scales": np.array([1, 1, 2, 2], np.float32)}
    onnx.save(model_of(nodes, tensors, [value("x", ["N", 4, 3, 3])], [value("y", ["N", 4, 6, 6])]), tmp_path / "m.onnx")
    network = export_source(tmp_path / "m.onnx", precision="fp16")
    network.write(tmp_path / "out.onnx")
    model = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [tensor.data_type for tensor in model.graph.initializer] == [TensorProto.FLOAT]
    assert "up" in network.notes[0]


def test_open_sizes_are_settled_by_name(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    tensors = {"w": np.ones((16, 8), np.float32)}
    onnx.save(model_of([node], tensors, [value("x", ["N", "L", 16])], [value("y", ["N", "L", 8])]), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"open: x \[N, L, 16\]"):
        load_onnx(tmp_path / "m.onnx")
    graph = load_onnx(tmp_path / "m.onnx", shapes=[InputSpec(name="x", shape=(5, 16))])
    assert graph.inputs[0].shape == (5, 16)
    with pytest.raises(ConfigError, match="cannot be"):
        load_onnx(tmp_path / "m.onnx", shapes=[InputSpec(name="x", shape=(5, 17))])
    with pytest.raises(ConfigError, match="it has x"):
        load_onnx(tmp_path / "m.onnx", shapes=[InputSpec(name="ghost", shape=(5, 17))])


def test_fixed_shapes_have_no_batch_range(tmp_path):
    write_gemm(tmp_path / "m.onnx", batch=3)
    network = export_source(tmp_path / "m.onnx")
    assert settle_batch(network, None, usual=RANGE) is None
    assert settle_batch(network, BatchRange(min=3, opt=3, max=3), usual=RANGE) is None
    with pytest.raises(ConfigError, match=r"fixed \(x \[3, 16\]\)"):
        settle_batch(network, RANGE, usual=RANGE)
    network.write(tmp_path / "out.onnx")
    samples = noise(network.inputs, 5, fixed=True)
    record = check_numerics(network.reference, tmp_path / "out.onnx", samples, None, tolerance=1e-5, precision="fp32")
    assert (record.passed, record.samples, record.batches) == (True, 5, ())


def test_a_batch_that_is_fixed_inside_is_told_with_its_node(tmp_path):
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w"], ["y"], name="fc", transB=1),
    ]
    tensors = {"w": np.ones((8, 16), np.float32), "shape": np.array([1, 16])}
    onnx.save(model_of(nodes, tensors, [value("x", ["N", 4, 4])], [value("y", ["N", 8])]), tmp_path / "m.onnx")
    network = export_source(tmp_path / "m.onnx")
    network.write(tmp_path / "out.onnx")
    with pytest.raises(InputError, match=r"refuses x \[4, 4, 4\]: node flatten \(Reshape\)"):
        check_numerics(
            network.reference, tmp_path / "out.onnx", noise(network.inputs, 9), RANGE, tolerance=1, precision="fp32"
        )


def test_quantized_weights_are_found_and_left(tmp_path):
    w = np.random.default_rng(0).integers(-9, 9, (8, 16)).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["wd"], name="dq"),
        helper.make_node("Gemm", ["x", "wd"], ["y"], name="fc", transB=1),
    ]
    tensors = {"w": w, "scale": np.float32(0.1), "zero": np.int8(0)}
    onnx.save(model_of(nodes, tensors, [value("x", ["N", 16])], [value("y", ["N", 8])]), tmp_path / "m.onnx")
    assert export_source(tmp_path / "m.onnx").precision == "int8+fp32"
    network = export_source(tmp_path / "m.onnx", precision="fp16")
    assert network.precision == "int8+fp16"
    network.write(tmp_path / "out.onnx")
    model = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(model, full_check=True)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds == {"w": TensorProto.INT8, "scale": TensorProto.FLOAT16, "zero": TensorProto.INT8}
