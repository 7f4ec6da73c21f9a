"""ONNX: operators and axes by hand, values against ONNX's own reference evaluator."""

import contextlib
import math

import ml_dtypes
import numpy as np
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from nm2trt.errors import InputError
from nm2trt.layers import METHOD_KEY, PATTERNS_KEY, open_layers, open_source

FLOAT = TensorProto.FLOAT


def model_of(nodes, initializers=(), *, functions=(), opset=21):
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, None)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        list(initializers),
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)


def write(folder, nodes, initializers=(), **options):
    path = folder / "model.onnx"
    path.write_bytes(model_of(nodes, initializers, **options).SerializeToString())
    return path


def tensor(name, shape, dtype=np.float32):
    return numpy_helper.from_array(np.arange(math.prod(shape)).reshape(shape).astype(dtype), name)


def only(path):
    (layer,) = open_layers(path)
    return layer


@pytest.mark.parametrize(
    ("op_type", "inputs", "shape", "attributes", "op", "axis", "groups"),
    [
        ("Conv", "xw", (8, 4, 3, 3), {}, "conv", 1, 1),
        ("Conv", "xw", (8, 4, 3), {}, "conv", 1, 1),
        ("Conv", "xw", (8, 4, 3, 3, 3), {}, "conv", 1, 1),
        ("Conv", "xw", (8, 4, 3, 3), {"group": 2}, "conv", 1, 2),
        ("Conv", "xw", (8, 1, 3, 3), {"group": 8}, "conv", None, 8),
        ("Conv", "xw", (8, 1, 3, 3), {}, "conv", 1, 1),
        ("ConvTranspose", "xw", (8, 4, 3, 3), {}, "conv-transpose", 0, 1),
        ("ConvTranspose", "xw", (8, 4, 3, 3), {"group": 2}, "conv-transpose", 0, 2),
        ("ConvTranspose", "xw", (8, 1, 3, 3), {"group": 8}, "conv-transpose", None, 8),
        ("Gemm", "xw", (8, 4), {}, "gemm", 0, 1),
        ("Gemm", "xw", (8, 4), {"transB": 1}, "gemm", 1, 1),
        ("Gemm", "wx", (8, 4), {}, "gemm", 1, 1),
        ("Gemm", "wx", (8, 4), {"transA": 1}, "gemm", 0, 1),
        ("MatMul", "xw", (8, 4), {}, "matmul", 0, 1),
        ("MatMul", "xw", (3, 8, 4), {}, "matmul", 1, 1),
        ("MatMul", "xw", (2, 3, 8, 4), {}, "matmul", 2, 1),
        ("MatMul", "wx", (8, 4), {}, "matmul", 1, 1),
        ("MatMul", "wx", (3, 8, 4), {}, "matmul", 2, 1),
        ("MatMul", "xw", (8,), {}, "matmul", None, 1),
    ],
)
@pytest.mark.parametrize("storage", ["initializer", "constant"])
def test_reduction_axes(op_type, inputs, shape, attributes, op, axis, groups, storage, tmp_path):
    weight = tensor("w", shape)
    node = helper.make_node(op_type, list(inputs), ["y"], name="node", **attributes)
    if storage == "initializer":
        path = write(tmp_path, [node], [weight])
    else:
        path = write(tmp_path, [helper.make_node("Constant", [], ["w"], value=weight), node])
    layer = only(path)
    assert (layer.name, layer.node, layer.op, layer.shape) == ("w", "node", op, shape)
    assert (layer.reduction_axis, layer.groups, bool(layer.why_not)) == (axis, groups, axis is None)
    assert (layer.dtype, layer.graph_dtype) == ("float32", "float32")
    assert layer.weight().tolist() == numpy_helper.to_array(weight).tolist()


def test_matmul_axis_is_the_one_that_is_summed_over(tmp_path):
    """Zero everything but one index of the axis: the product must equal that one term."""
    rng = np.random.default_rng(0)
    for shape in ((8, 4), (3, 8, 4)):
        weight = rng.standard_normal(shape)
        layer = only(write(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("w", shape)]))
        x = rng.standard_normal((*shape[:-2], 5, 8))
        terms = sum(
            np.take(x, [k], -1) @ np.take(weight, [k], layer.reduction_axis) for k in range(shape[layer.reduction_axis])
        )
        np.testing.assert_allclose(terms, x @ weight)


@st.composite
def chains(draw):
    """Nodes from "w" to the weight input, with the parameters they need."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    nodes, parameters, name, current = [], [], "w", shape
    for index in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(("Identity", "Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze")))
        following, extra, attributes = f"w{index}", [], {}
        if kind == "Cast":
            attributes["to"] = draw(st.sampled_from((FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)))
        elif kind == "Transpose":
            if draw(st.booleans()):
                attributes["perm"] = draw(st.permutations(range(len(current))))
            perm = attributes.get("perm", tuple(reversed(range(len(current)))))
            current = tuple(current[axis] for axis in perm)
        elif kind == "Reshape":
            wanted = draw(st.sampled_from(([-1, current[-1]], [0, -1], [math.prod(current[:-1]), current[-1]])))
            current = np.empty(current).reshape([current[0] if size == 0 else size for size in wanted]).shape
            extra = [np.array(wanted)]
        elif kind == "Unsqueeze":
            axis = draw(st.integers(-len(current) - 1, len(current)))
            current = np.expand_dims(np.empty(current), axis).shape
            extra = [np.array([axis])]
        elif kind == "Squeeze":
            ones = [axis for axis, size in enumerate(current) if size == 1]
            if not ones or len(current) < 3:
                kind = "Identity"
            else:
                current = tuple(size for axis, size in enumerate(current) if axis != ones[0])
                extra = [np.array([ones[0]])]
        inputs = [name]
        for value in extra:
            parameters.append(numpy_helper.from_array(value.astype(np.int64), f"p{index}"))
            inputs.append(f"p{index}")
        nodes.append(helper.make_node(kind, inputs, [following], **attributes))
        name = following
    return shape, nodes, parameters, name


@given(chains())
def test_values_behind_layout_nodes_equal_the_reference_evaluator(tmp_path_factory, case):
    shape, nodes, parameters, name = case
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    initializers = [numpy_helper.from_array(weight, "w"), *parameters]
    path = write(tmp_path_factory.mktemp("m"), [*nodes, helper.make_node("MatMul", ["x", name], ["y"])], initializers)
    graph = helper.make_graph(
        nodes or [helper.make_node("Identity", ["w"], ["out"])],
        "chain",
        [],
        [helper.make_tensor_value_info(name if nodes else "out", FLOAT, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (expected,) = ReferenceEvaluator(model).run(None, {})
    layer = only(path)
    assert layer.name == "w"
    assert layer.shape == expected.shape
    assert layer.graph_dtype == expected.dtype.name
    np.testing.assert_array_equal(layer.weight(), expected)


QUANTIZED = [
    (np.int8, 0),
    (np.int8, 3),
    (np.uint8, 128),
    (np.uint8, 0),
    (ml_dtypes.int4, 0),
    (ml_dtypes.uint4, 8),
]


@pytest.mark.parametrize(
    ("dtype", "zero", "form"),
    [(*case, form) for case in QUANTIZED for form in ("per-tensor", "per-channel", "blocked")]
    + [(np.int8, 0, "no-zero-point"), (np.uint8, 0, "no-zero-point")],
)
def test_dequantized_zeros_are_where_the_reference_evaluator_puts_them(dtype, zero, form, tmp_path):
    rng = np.random.default_rng(1)
    stored = rng.integers(zero, zero + 3, (4, 8)).astype(np.int32).astype(dtype)
    scale_shape = {"per-channel": (4,), "blocked": (4, 2)}.get(form, ())
    scale = np.full(scale_shape, 0.5, np.float32)
    inputs = ["w", "scale"] if form == "no-zero-point" else ["w", "scale", "zero"]
    attributes = {"per-channel": {"axis": 0}, "blocked": {"axis": 1, "block_size": 4}}.get(form, {})
    initializers = [
        numpy_helper.from_array(stored, "w"),
        numpy_helper.from_array(scale, "scale"),
        numpy_helper.from_array(np.full(scale_shape, zero).astype(dtype), "zero"),
    ][: len(inputs)]
    dequantize = helper.make_node("DequantizeLinear", inputs, ["f"], **attributes)
    path = write(tmp_path, [dequantize, helper.make_node("MatMul", ["x", "f"], ["y"])], initializers)
    layer = only(path)
    wide = np.asarray(stored).astype(np.float32)
    assert layer.zero_point == (zero != 0)
    assert layer.dtype == np.dtype(dtype).name
    assert layer.graph_dtype == np.dtype(dtype).name
    np.testing.assert_array_equal(layer.weight().astype(np.float32), wide - zero)


@pytest.mark.parametrize("zero", [0, 5])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_float_weights_behind_quantize_and_dequantize(zero, axis, tmp_path):
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((6, 8)).astype(np.float32) * 3
    weight[0] = 0.001
    count = () if axis is None else (weight.shape[axis],)
    scale = rng.uniform(0.05, 2, count).astype(np.float32)
    initializers = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(scale, "scale"),
        numpy_helper.from_array(np.full(count, zero, np.int8), "zero"),
    ]
    attributes = {} if axis is None else {"axis": axis}
    chain = [
        helper.make_node("QuantizeLinear", ["w", "scale", "zero"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["f"], **attributes),
    ]
    output = helper.make_tensor_value_info("f", FLOAT, None)
    reference = helper.make_model(
        helper.make_graph(chain, "chain", [], [output], initializers), opset_imports=[helper.make_opsetid("", 21)]
    )
    (expected,) = ReferenceEvaluator(reference).run(None, {})
    layer = only(write(tmp_path, [*chain, helper.make_node("MatMul", ["x", "f"], ["y"])], initializers))
    assert (layer.dtype, layer.graph_dtype, layer.zero_point) == ("float32", "int8", zero != 0)
    wide_scale = scale if axis is None else scale.reshape([-1 if i == axis else 1 for i in range(2)])
    np.testing.assert_allclose(layer.weight() * wide_scale, expected, rtol=1e-6)
    assert (expected == 0).any()


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int8, ml_dtypes.float8_e4m3fn]
)
def test_stored_types(dtype, tmp_path):
    layer = only(write(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("w", (2, 8), dtype)]))
    assert layer.dtype == np.dtype(dtype).name
    assert layer.weight().astype(np.float32).tolist() == np.arange(16).reshape(2, 8).tolist()


@pytest.mark.parametrize(
    ("data_type", "values"),
    [
        (TensorProto.FLOAT, [0.0, -0.0, 1.5, -2.0]),
        (TensorProto.DOUBLE, [0.0, 1.0, 2.0, 3.0]),
        (TensorProto.FLOAT16, [0.0, 1.0, 2.0, -3.0]),
        (TensorProto.BFLOAT16, [0.0, 1.0, 2.0, -3.0]),
        (TensorProto.INT8, [0, -1, 2, 3]),
    ],
)
def test_typed_fields_of_tensorproto(data_type, values, tmp_path):
    weight = helper.make_tensor("w", data_type, [2, 2], values)
    assert not weight.HasField("raw_data")
    layer = only(write(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], [weight]))
    assert layer.weight().astype(np.float64).reshape(-1).tolist() == values


def test_weights_that_are_computed_are_no_layers(tmp_path):
    nodes = [
        helper.make_node("Mul", ["w", "x"], ["v"]),
        helper.make_node("MatMul", ["x", "v"], ["a"]),
        helper.make_node("MatMul", ["a", "x"], ["y"]),
    ]
    assert list(open_layers(write(tmp_path, nodes, [tensor("w", (4, 4))]))) == []


def test_a_shared_weight_is_one_layer_per_way_of_use(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="second"),
        helper.make_node("Gemm", ["b", "w"], ["y"], name="third", transB=1),
    ]
    layers = list(open_layers(write(tmp_path, nodes, [tensor("w", (4, 4))])))
    assert [(layer.name, layer.op, layer.node) for layer in layers] == [
        ("w", "matmul", "first, second"),
        ("w", "gemm", "third"),
    ]


def test_subgraphs_and_functions(tmp_path):
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "outer"], ["inside"], name="in-branch")],
        "branch",
        [],
        [helper.make_tensor_value_info("inside", FLOAT, None)],
    )
    body = [helper.make_node("Gemm", ["a", "b"], ["c"], transB=1)]
    function = helper.make_function("local", "Linear", ["a", "b"], ["c"], body, [helper.make_opsetid("", 21)])
    nodes = [
        helper.make_node("If", ["flag"], ["t"], then_branch=branch, else_branch=branch),
        helper.make_node("Linear", ["t", "w"], ["y"], domain="local", name="call"),
    ]
    flag = numpy_helper.from_array(np.array(True), "flag")
    path = write(tmp_path, nodes, [tensor("outer", (4, 4)), tensor("w", (8, 4)), flag], functions=[function])
    found = {layer.name: (layer.op, layer.reduction_axis) for layer in open_layers(path)}
    assert found == {"outer": ("matmul", 0), "w": ("gemm", 1)}


def test_metadata(tmp_path):
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("w", (4, 4))])
    helper.set_model_props(model, {PATTERNS_KEY: '{"w": "1:4"}', METHOD_KEY: "ste"})
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    source = open_source(path)
    assert (source.kind, source.patterns, source.method) == ("onnx", {"w": "1:4"}, "ste")


# External data


def external(folder, location="weights.bin", offset=None, length=None, shape=(4, 8)):
    weight = TensorProto(name="w", data_type=FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            weight.external_data.add(key=key, value=str(value))
    return write(folder, [helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])


def test_external_data_next_to_the_model(tmp_path, monkeypatch):
    values = np.arange(40, dtype=np.float32)
    (tmp_path / "weights.bin").write_bytes(values.tobytes())
    path = external(tmp_path, offset=32, length=128)
    expected = values[8:].reshape(4, 8).tolist()
    layer = only(path)
    assert layer.weight().tolist() == expected
    assert layer.weight().tolist() == expected
    # A bare file name has an empty folder part.
    monkeypatch.chdir(tmp_path)
    assert only("model.onnx").weight().tolist() == expected


@pytest.mark.parametrize("how", ["parent", "absolute", "symlink", "missing", "short", "overlong", "huge", "negative"])
def test_external_data_that_may_not_be_read(how, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(1024))
    (folder / "weights.bin").write_bytes(bytes(100))
    words = "do not lie in"
    if how == "parent":
        path, words = external(folder, "../secret.bin"), "outside the model's folder"
    elif how == "absolute":
        path, words = external(folder, tmp_path / "secret.bin"), "absolute location"
    elif how == "symlink":
        (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
        path, words = external(folder, "link.bin"), "outside the model's folder"
    elif how == "missing":
        path, words = external(folder, "gone.bin"), "is missing"
    elif how == "short":
        path = external(folder)
    elif how == "overlong":
        path = external(folder, offset=64, length=64, shape=(4, 4))
    elif how == "huge":
        path = external(folder, shape=(1 << 31, 1 << 31))
    else:
        path, words = external(folder, offset=-4, shape=(2, 2)), "no valid ONNX model|do not lie in"
    with pytest.raises(InputError, match=words) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


# Files that are no models


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x08",
        b"hello, I am a text file",
        b"\x08\x0a",
        bytes(1000),
        b"\xff" * 100,
        b"{}",
        b"PK\x03\x04" + bytes(64),
    ],
)
def test_files_that_are_no_onnx(raw, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(raw)
    with pytest.raises(InputError, match="ONNX") as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dims", "raw"), [((1 << 40,), b""), ((4, 4), bytes(60)), ((4, 4), bytes(68)), ((-4, -4), bytes(64))]
)
def test_shapes_that_lie(dims, raw, tmp_path):
    for has_raw in (True, False):
        weight = TensorProto(name="w", data_type=FLOAT, dims=dims)
        if has_raw:
            weight.raw_data = raw
        else:
            weight.float_data.extend(np.frombuffer(raw, np.float32))
        path = write(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])
        with pytest.raises(InputError, match="'w'"):
            open_source(path)


def test_cycles_end(tmp_path):
    nodes = [
        helper.make_node("Identity", ["b"], ["a"]),
        helper.make_node("Reshape", ["a", "a"], ["b"]),
        helper.make_node("MatMul", ["x", "b"], ["y"]),
    ]
    with contextlib.suppress(InputError):
        assert list(open_layers(write(tmp_path, nodes))) == []


def test_functions_that_call_each_other_are_refused_or_ignored(tmp_path):
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    functions = [
        helper.make_function(
            "local", name, ["a"], ["c"], [helper.make_node(other, ["a"], ["c"], domain="local")], opsets
        )
        for name, other in (("F", "G"), ("G", "F"))
    ]
    path = write(tmp_path, [helper.make_node("F", ["x"], ["y"], domain="local")], functions=functions)
    with contextlib.suppress(InputError):
        assert list(open_layers(path)) == []


@examples(200)
@given(st.data())
def test_mutated_models_are_read_or_refused(tmp_path_factory, data):
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], axis=0),
        helper.make_node("Transpose", ["f"], ["t"], perm=[1, 0]),
        helper.make_node("Reshape", ["t", "p"], ["r"]),
        helper.make_node("MatMul", ["x", "r"], ["y"]),
    ]
    initializers = [
        tensor("w", (4, 8), np.int8),
        tensor("s", (4,)),
        tensor("z", (4,), np.int8),
        numpy_helper.from_array(np.array([8, -1]), "p"),
    ]
    raw = bytearray(model_of(nodes, initializers).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("mutated") / "model.onnx"
    path.write_bytes(bytes(raw))
    # Anything but an InputError fails the test.
    with contextlib.suppress(InputError):
        for layer in open_layers(path):
            assert layer.weight().shape == layer.shape
