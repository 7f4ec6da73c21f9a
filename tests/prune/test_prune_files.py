"""Pruned files against a slow loop, and everything else in them against the original's bytes."""

import collections
import json
import zipfile

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from nm2trt.errors import ConfigError, InputError
from nm2trt.layers import METHOD_KEY
from nm2trt.pattern import NMPattern
from nm2trt.prune import Request, prune_path
from nm2trt.verify import verify_path

TWO_FOUR = Request(pattern=NMPattern(2, 4))
RNG = np.random.default_rng(0)


def slow_prune(weight, n, m, axis):
    """Keep the n largest of every m along the axis, one group at a time; ties go to the lowest index."""
    result = np.moveaxis(weight.copy(), axis, -1)
    for index in np.ndindex(result.shape[:-1]):
        row = result[index]
        for start in range(0, row.size, m):
            sizes = [abs(float(value)) for value in row[start : start + m]]
            kept = sorted(range(m), key=lambda i, sizes=sizes: (-sizes[i], i))[:n]
            for i in range(m):
                if i not in kept:
                    row[start + i] = 0
    return np.moveaxis(result, -1, axis)


def bits(array):
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def assert_same_bits(found, expected):
    """Equal to the last bit where a value was kept; zeros may be of either sign."""
    assert found.dtype == expected.dtype
    kept = expected != 0
    assert np.array_equal(bits(found)[kept], bits(expected)[kept])
    assert not np.any(found[~kept])


def random(shape, dtype=np.float32):
    if np.dtype(dtype) == np.int8:
        return RNG.integers(-128, 128, shape).astype(np.int8)
    return RNG.standard_normal(shape).astype(np.float32).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int8])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (2, 8), (1, 16), (3, 4)])
def test_safetensors(tmp_path, dtype, n, m):
    if dtype == ml_dtypes.bfloat16:
        tensors = {"conv.weight": torch.randn(8, 16, 3, 3).bfloat16()}
        from safetensors.torch import save_file as save_torch

        save_torch(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
        weight = tensors["conv.weight"].view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    else:
        weight = random((8, 16, 3, 3), dtype)
        save_file({"conv.weight": weight}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    document = prune_path(tmp_path / "a.safetensors", tmp_path / "b.safetensors", Request(pattern=NMPattern(n, m)))
    assert document.verdict == "pass"
    (before, after) = (path.read_bytes() for path in (tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
    start = 8 + int.from_bytes(before[:8], "little")
    assert before[:start] == after[:start], "the header is untouched"
    assert_same_bits(np.frombuffer(after[start:], weight.dtype).reshape(weight.shape), slow_prune(weight, n, m, 1))


@given(
    weight=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.sampled_from([4, 8, 12])),
        elements=st.floats(-2, 2, width=16) | st.just(-0.0),
    )
)
@examples(60)
def test_any_weight(tmp_path_factory, weight):
    folder = tmp_path_factory.mktemp("any")
    other = np.arange(6, dtype=np.float32)
    save_file({"w.weight": weight, "other.bias": other}, folder / "a.safetensors")
    # Drawn values look like tables as often as not; naming the layer says that they are weights.
    named = Request(pattern=TWO_FOUR.pattern, layer_patterns={"w": TWO_FOUR.pattern})
    document = prune_path(folder / "a.safetensors", folder / "b.safetensors", named)
    found = load_file(folder / "b.safetensors")
    assert_same_bits(found["w.weight"], slow_prune(weight, 2, 4, 1))
    zeros = weight == 0
    assert np.array_equal(bits(found["w.weight"])[zeros], bits(weight)[zeros]), "also -0.0 keeps its bits"
    assert np.array_equal(found["other.bias"], other)
    sizes = np.abs(weight)
    (layer,) = [layer for layer in document.layers if layer.pattern]
    total = float(sizes.sum())
    assert layer.magnitude == pytest.approx(total)
    if total:
        assert layer.kept == pytest.approx(float(np.abs(slow_prune(weight, 2, 4, 1)).sum()) / total)
        bound = float(np.sort(sizes.reshape(-1))[weight.size // 2 :].sum()) / total
        assert layer.kept_unstructured == pytest.approx(bound)


def test_torch_file_keeps_everything_else(tmp_path):
    linear = torch.nn.Linear(16, 8)
    embedding = torch.randn(32, 16)
    state = collections.OrderedDict(
        {
            "module.a.weight": linear.weight,
            "module.tied.weight": linear.weight,
            "module.a.bias": linear.bias,
            "module.emb.weight": embedding,
            "module.view.weight": torch.randn(16, 16).t()[:8],
            "module.half.weight": torch.randn(8, 16).half(),
            "module.b16.weight": torch.randn(8, 16).bfloat16(),
        }
    )
    state._metadata = {"version": 7}
    torch.save({"state_dict": state, "epoch": 3, "args": {"lr": 0.1, "names": ["a", ("b", 2)]}}, tmp_path / "a.pt")
    document = prune_path(tmp_path / "a.pt", tmp_path / "b.pt", TWO_FOUR)
    assert document.verdict == "pass"
    with zipfile.ZipFile(tmp_path / "b.pt") as archive:
        assert archive.testzip() is None, "check sums are right"
        names = archive.namelist()
    with zipfile.ZipFile(tmp_path / "a.pt") as before, zipfile.ZipFile(tmp_path / "b.pt") as after:
        assert before.namelist() == names
        assert before.read("a/data.pkl") == after.read("a/data.pkl"), "dicts, classes and views are untouched"
    for mapped in (False, True):
        found = torch.load(tmp_path / "b.pt", weights_only=True, mmap=mapped)
        assert (found["epoch"], found["args"]) == (3, {"lr": 0.1, "names": ["a", ("b", 2)]})
        tensors = found["state_dict"]
        assert tensors["module.a.weight"].data_ptr() == tensors["module.tied.weight"].data_ptr()
        assert torch.equal(tensors["module.emb.weight"], embedding)
        assert torch.equal(tensors["module.a.bias"], linear.bias)
        for name in ("a", "view", "half", "b16"):
            original, pruned = state[f"module.{name}.weight"], tensors[f"module.{name}.weight"]
            expected = slow_prune(original.detach().float().numpy(), 2, 4, 1)
            assert np.array_equal(pruned.detach().float().numpy(), expected), name


def test_old_torch_format_stays_old(tmp_path):
    weight = torch.randn(8, 16)
    torch.save({"w.weight": weight, "n": 5}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert prune_path(tmp_path / "a.pth", tmp_path / "b.pth", TWO_FOUR).verdict == "pass"
    assert not zipfile.is_zipfile(tmp_path / "b.pth")
    found = torch.load(tmp_path / "b.pth", weights_only=True)
    assert found["n"] == 5
    assert np.array_equal(found["w.weight"].numpy(), slow_prune(weight.numpy(), 2, 4, 1))


def test_masks_beside_a_weight_are_applied(tmp_path):
    weight = random((4, 8))
    keeps = np.zeros((4, 8), np.bool_)
    keeps[:, 4:] = True
    save_file({"fc_.weight": weight, "fc_.__weight_mma_mask": keeps}, tmp_path / "a.safetensors")
    prune_path(tmp_path / "a.safetensors", tmp_path / "b.safetensors", TWO_FOUR)
    found = load_file(tmp_path / "b.safetensors")
    assert_same_bits(found["fc_.weight"], slow_prune(np.where(keeps, weight, 0), 2, 4, 1))
    assert np.array_equal(found["fc_.__weight_mma_mask"], keeps)


# ONNX


def onnx_model(nodes, initializers, *, functions=(), sparse=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
        doc_string="graph notes",
        sparse_initializer=sparse,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1), helper.make_opsetid("com.acme", 7)]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)
    model.doc_string = "model notes"
    helper.set_model_props(model, {METHOD_KEY: "asp", "author": "someone"})
    return model


def typed(name, array):
    """A tensor in the typed field of its type, not in raw_data."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    values = array.astype(np.float32 if array.dtype.itemsize == 2 else array.dtype).reshape(-1)
    return helper.make_tensor(name, kind, array.shape, values.tolist())


def without(model, *names):
    """The model with these tensors' data cleared, to compare the rest."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = [*copy.graph.initializer]
    tensors += [a.t for holder in (copy.graph, *copy.functions) for node in holder.node for a in node.attribute]
    for tensor in tensors:
        if tensor.name in names:
            for field in ("raw_data", "float_data", "int32_data", "double_data"):
                tensor.ClearField(field)
    return copy.SerializeToString(deterministic=True)


@pytest.mark.parametrize("storage", ["raw", "typed", "constant"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_onnx_storage_forms(tmp_path, storage, dtype):
    weight = random((8, 8, 3, 3), dtype)
    tensor = typed("w", weight) if storage == "typed" else numpy_helper.from_array(weight, "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    if storage == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    model = onnx_model(nodes, [] if storage == "constant" else [tensor])
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    assert prune_path(tmp_path / "a.onnx", tmp_path / "b.onnx", TWO_FOUR).verdict == "pass"
    found = onnx.load(tmp_path / "b.onnx")
    assert without(found, "w") == without(model, "w")
    stored = found.graph.initializer[0] if storage != "constant" else found.graph.node[0].attribute[0].t
    assert stored.HasField("raw_data") == (storage != "typed")
    assert_same_bits(numpy_helper.to_array(stored), slow_prune(weight, 2, 4, 1))


@pytest.mark.parametrize(
    ("nodes", "shape", "axis"),
    [
        ([("Gemm", ["x", "w"], {"transB": 1})], (8, 16), 1),
        ([("Gemm", ["x", "w"], {})], (8, 16), 0),
        ([("MatMul", ["x", "w"], {})], (2, 8, 16), 1),
        ([("MatMul", ["w", "x"], {})], (8, 16), 1),
        ([("Transpose", ["w"], {"perm": [1, 0]}), ("MatMul", ["x", "h"], {})], (8, 16), 1),
        ([("Cast", ["w"], {"to": 10}), ("Cast", ["h"], {"to": 1}), ("MatMul", ["x", "h"], {})], (8, 16), 0),
    ],
)
def test_reduction_axis_behind_layout_nodes(tmp_path, nodes, shape, axis):
    weight = random(shape)
    made, last = [], ""
    for index, (op_type, inputs, attributes) in enumerate(nodes):
        output = "y" if index == len(nodes) - 1 else f"v{index}"
        made.append(helper.make_node(op_type, [last if i == "h" else i for i in inputs], [output], **attributes))
        last = output
    model = onnx_model(made, [numpy_helper.from_array(weight, "w")])
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    assert prune_path(tmp_path / "a.onnx", tmp_path / "b.onnx", TWO_FOUR).verdict == "pass"
    found = onnx.load(tmp_path / "b.onnx")
    assert without(found, "w") == without(model, "w")
    assert_same_bits(numpy_helper.to_array(found.graph.initializer[0]), slow_prune(weight, 2, 4, axis))


def quantized(tmp_path, zero):
    stored = random((8, 8, 1, 1), np.int8)
    initializers = [
        numpy_helper.from_array(stored, "w"),
        numpy_helper.from_array(np.full(8, 0.1, np.float32), "scale"),
        numpy_helper.from_array(np.full(8, zero, np.int8), "zero"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["d"], axis=0),
        helper.make_node("Conv", ["x", "d"], ["y"]),
    ]
    (tmp_path / "a.onnx").write_bytes(onnx_model(nodes, initializers).SerializeToString())
    return stored


def test_int8_behind_dequantize(tmp_path):
    stored = quantized(tmp_path, 0)
    assert prune_path(tmp_path / "a.onnx", tmp_path / "b.onnx", TWO_FOUR).verdict == "pass"
    found = numpy_helper.to_array(onnx.load(tmp_path / "b.onnx").graph.initializer[0])
    assert np.array_equal(found, slow_prune(stored, 2, 4, 1))


def test_a_zero_point_is_refused_by_name(tmp_path):
    quantized(tmp_path, 3)
    with pytest.raises(InputError, match="'w' is quantized with a zero point"):
        prune_path(tmp_path / "a.onnx", tmp_path / "b.onnx", TWO_FOUR)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx"]


def test_functions_subgraphs_domains_and_sparse_initializers_stay(tmp_path):
    inner, branch, outer = (random((8, 8, 1, 1)) for _ in range(3))
    body = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(inner, "inner")),
        helper.make_node("Conv", ["i", "w"], ["o"]),
    ]
    function = helper.make_function("local", "Block", ["i"], ["o"], body, [helper.make_opsetid("", 21)])
    branches = {
        name: helper.make_graph(
            [helper.make_node("Conv", ["b", f"w_{name}"], [f"o_{name}"])],
            name,
            [],
            [helper.make_tensor_value_info(f"o_{name}", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(branch, f"w_{name}")],
        )
        for name in ("then_branch", "else_branch")
    }
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("s", TensorProto.FLOAT, [1], [2.0]),
        helper.make_tensor("s_i", TensorProto.INT64, [1], [3]),
        [8],
    )
    nodes = [
        helper.make_node("Conv", ["x", "outer"], ["a"]),
        helper.make_node("Block", ["a"], ["a2"], domain="local"),
        helper.make_node("Block", ["a2"], ["b"], domain="local"),
        helper.make_node("If", ["c"], ["z"], **branches),
        helper.make_node("Odd", ["z", "s"], ["y"], domain="com.acme"),
    ]
    initializers = [numpy_helper.from_array(outer, "outer"), numpy_helper.from_array(np.array(True), "c")]
    model = onnx_model(nodes, initializers, functions=[function], sparse=[sparse])
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    assert prune_path(tmp_path / "a.onnx", tmp_path / "b.onnx", TWO_FOUR).verdict == "pass"
    found = onnx.load(tmp_path / "b.onnx")
    assert_same_bits(numpy_helper.to_array(found.functions[0].node[0].attribute[0].t), slow_prune(inner, 2, 4, 1))
    assert_same_bits(numpy_helper.to_array(found.graph.initializer[0]), slow_prune(outer, 2, 4, 1))
    for attribute in found.graph.node[3].attribute:
        assert_same_bits(numpy_helper.to_array(attribute.g.initializer[0]), slow_prune(branch, 2, 4, 1))
    for copy in (found, model):
        copy.functions[0].node[0].attribute[0].t.ClearField("raw_data")
        for attribute in copy.graph.node[3].attribute:
            attribute.g.initializer[0].ClearField("raw_data")
    model = onnx.load_from_string(model.SerializeToString())
    assert without(found, "outer") == without(model, "outer")


@pytest.mark.parametrize("same_folder", [True, False])
def test_external_data(tmp_path, same_folder):
    weight, other = random((64, 64, 3, 3)), random((64,))
    model = onnx_model(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(other, "b")],
    )
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    before = (tmp_path / "a.data").read_bytes()
    target = tmp_path if same_folder else tmp_path / "out"
    target.mkdir(exist_ok=True)
    assert prune_path(tmp_path / "a.onnx", target / "b.onnx", TWO_FOUR).verdict == "pass"
    assert (tmp_path / "a.data").read_bytes() == before, "the original's data are untouched"
    found = onnx.load(target / "b.onnx")
    assert_same_bits(numpy_helper.to_array(found.graph.initializer[0]), slow_prune(weight, 2, 4, 1))
    assert np.array_equal(numpy_helper.to_array(found.graph.initializer[1]), other)
    assert sorted(path.name for path in target.iterdir() if path.is_file()) == (
        ["a.data", "a.onnx", "b.onnx", "b.onnx.data"] if same_folder else ["a.data", "b.onnx"]
    )


def test_what_stays_dense_says_why(tmp_path):
    tensors = {
        "stem": random((8, 3, 3, 3)),
        "dw": random((8, 1, 3, 3)),
        "table": random((16, 8)),
        "tied": random((8, 8)),
        "up": random((8, 8, 2, 2)),
        "mid": random((8, 8, 1, 1)),
        "last": random((8, 4)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], name="n_stem"),
        helper.make_node("Conv", ["a", "dw"], ["b"], group=8, name="n_dw"),
        helper.make_node("Conv", ["b", "mid"], ["c"], name="n_mid"),
        helper.make_node("ConvTranspose", ["c", "up"], ["d"], name="n_up"),
        helper.make_node("Gather", ["tied", "ids"], ["e"], name="n_gather"),
        helper.make_node("MatMul", ["e", "tied"], ["f"], name="n_tied"),
        helper.make_node("Add", ["d", "f"], ["g"]),
        helper.make_node("MatMul", ["g", "last"], ["y"], name="n_last"),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items() if name != "table"]
    initializers.append(numpy_helper.from_array(np.arange(2), "ids"))
    (tmp_path / "a.onnx").write_bytes(onnx_model(nodes, initializers).SerializeToString())
    document = prune_path(tmp_path / "a.onnx", tmp_path / "b.onnx", TWO_FOUR)
    rows = {layer.name: layer for layer in document.layers}
    assert [name for name, row in rows.items() if row.pattern] == ["mid"]
    for name, words in (
        ("stem", "shorter than M = 4"),
        ("dw", "depthwise"),
        ("up", "transposed"),
        ("tied", "also read by Gather 'n_gather'"),
        ("last", "classifier"),
    ):
        assert words in rows[name].reason
    named = Request(pattern=NMPattern(2, 4), layer_patterns={"n_last": NMPattern(1, 4), "tied": NMPattern(2, 4)})
    again = prune_path(tmp_path / "a.onnx", tmp_path / "c.onnx", named)
    assert {layer.name: layer.pattern for layer in again.layers if layer.pattern} == {
        "mid": "2:4",
        "tied": "2:4",
        "last": "1:4",
    }


def test_a_weight_reduced_along_two_axes_stays_dense(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Gemm", ["a", "w"], ["b"], transB=1, name="second"),
        helper.make_node("MatMul", ["b", "v"], ["c"]),
        helper.make_node("MatMul", ["c", "scores"], ["y"]),
    ]
    initializers = [numpy_helper.from_array(random((8, 8)), name) for name in ("w", "v", "scores")]
    (tmp_path / "a.onnx").write_bytes(onnx_model(nodes, initializers).SerializeToString())
    document = prune_path(tmp_path / "a.onnx", tmp_path / "b.onnx", TWO_FOUR)
    assert {layer.name: layer.pattern for layer in document.layers} == {"w": None, "v": "2:4", "scores": None}
    assert "different axes" in document.layers[0].reason


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_weights_are_named(tmp_path, bad):
    weight = random((4, 8))
    weight[2, 5] = bad
    save_file({"x.weight": weight, "z.weight": random((4, 8))}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"'x.weight' holds 1 NaN or infinite values, the first at \[2, 5\]"):
        prune_path(tmp_path / "a.safetensors", tmp_path / "b.safetensors", TWO_FOUR)
    assert not (tmp_path / "b.safetensors").exists()
    document = prune_path(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", Request(pattern=NMPattern(2, 4), exclude=["x"])
    )
    assert document.verdict == "pass"


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded_folder(tmp_path, suffix):
    source = tmp_path / "model"
    source.mkdir()
    weights = {"a.weight": random((8, 16)), "b.weight": random((8, 16)), "b.bias": random((8,))}
    index, stem = ("model.safetensors", "model") if suffix == "safetensors" else ("pytorch_model.bin", "pytorch_model")
    files = {name: f"{stem}-0000{1 + (name[0] == 'b')}-of-00002.{suffix}" for name in weights}
    for file in set(files.values()):
        held = {name: weights[name] for name, where in files.items() if where == file}
        if suffix == "safetensors":
            save_file(held, source / file)
        else:
            torch.save({name: torch.from_numpy(array) for name, array in held.items()}, source / file)
    (source / f"{index}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (source / "config.json").write_text("{}")
    (source / "tf_model.h5").write_bytes(b"dense")
    document = prune_path(source, tmp_path / "out", TWO_FOUR)
    assert document.verdict == "pass"
    assert "tf_model.h5" in document.notes[0]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in source.iterdir()} - {
        "tf_model.h5"
    }
    assert verify_path(tmp_path / "out", NMPattern(2, 4), strict=True).verdict == "pass"
    if suffix == "safetensors":
        with safe_open(tmp_path / "out" / files["a.weight"], framework="numpy") as file:
            assert_same_bits(file.get_tensor("a.weight"), slow_prune(weights["a.weight"], 2, 4, 1))
    with pytest.raises(ConfigError, match="exists"):
        prune_path(source, tmp_path / "out", TWO_FOUR, force=True)
    with pytest.raises(ConfigError, match="inside the source"):
        prune_path(source, source / "sub", TWO_FOUR)
