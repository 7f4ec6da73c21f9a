"""Whole ONNX networks pruned with data; torch computes the inputs of every layer from the written file alone."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nm2trt.errors import InputError
from nm2trt.pattern import NMPattern
from nm2trt.pipelines.prune import PruneConfig, prune_file
from nm2trt.pipelines.prune_data import DataConfig
from nm2trt.prune.calibrated.activations import ActivationStream
from nm2trt.prune.calibrated.onnx_graph import RunnableGraph
from nm2trt.verify import verify_path

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
F = torch.nn.functional
FLOAT = TensorProto.FLOAT
SAMPLES = 40


def save_network(path, nodes, weights, x_shape, y_shape, *, dtype=FLOAT, functions=(), external=False):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, ["n", *x_shape])],
        [helper.make_tensor_value_info("y", dtype, ["n", *y_shape])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=list(functions))
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path


def convolutions(path, *, seed=0, shared_norm=False):
    """Conv, BN, Relu, grouped Conv with stride, BN, and a skip; a last 1x1 convolution with a fixed-size map."""
    rng = np.random.default_rng(seed)
    weights = {
        "w1": rng.standard_normal((8, 4, 3, 3)),
        "w2": rng.standard_normal((8, 4, 3, 3)) / 6,
        "w3": rng.standard_normal((16, 8, 1, 1)),
        "scale": rng.uniform(0.5, 1.5, 8),
        "bias": rng.standard_normal(8),
        "mean1": rng.standard_normal(8),
        "var1": rng.uniform(20, 50, 8),
        "mean2": rng.standard_normal(8),
        "var2": rng.uniform(1, 2, 8),
    }
    second = ["mean1", "var1"] if shared_norm else ["mean2", "var2"]
    three = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="c1", **three),
        helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean1", "var1"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w2"], ["d"], name="c2", group=2, **three),
        helper.make_node("BatchNormalization", ["d", "scale", "bias", *second], ["e"]),
        helper.make_node("Add", ["e", "c"], ["f"]),
        helper.make_node("Conv", ["f", "w3"], ["y"], name="c3"),
    ]
    kept = {
        name: values.astype(np.float32)
        for name, values in weights.items()
        if name in {n for x in nodes for n in x.input}
    }
    return save_network(path, nodes, kept, [4, 6, 6], [16, 6, 6])


def samples(path, shape, *, seed=1, dtype=np.float32, **more):
    x = np.random.default_rng(seed).standard_normal((SAMPLES, *shape)).astype(dtype)
    np.savez(path, x=x, **more)
    return x


def tensors_of(path):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def prune(source, output, data, *, pattern="2:4", layers=None, exclude=(), **options):
    return prune_file(
        source,
        output,
        PruneConfig(
            pattern=pattern, layer_patterns=layers or {}, exclude=exclude, data=DataConfig(data=str(data), **options)
        ),
    )


def calibration_part(data, document):
    """The samples that pruned: all but the held-out fifth, drawn by the seed that docs/calibrate.md states."""
    order = np.random.default_rng(0).permutation(SAMPLES)
    assert document.calibrated.samples == SAMPLES - SAMPLES // 5
    return np.sort(order[: document.calibrated.samples])


def share(change, dense):
    return float((change.double() ** 2).sum() / (dense.double() ** 2).sum())


@pytest.mark.parametrize("method", ["obs", "wanda", "magnitude"])
@pytest.mark.parametrize("batch_size", [7, 64])
def test_errors_are_those_on_the_inputs_of_the_pruned_network(tmp_path, method, batch_size):
    source, out = convolutions(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    x = samples(tmp_path / "d.npz", (4, 6, 6))
    document = prune(
        source, out, tmp_path / "d.npz", layers={"w3": NMPattern(1, 4)}, method=method, batch_size=batch_size,
        recalibrate_bn=True,
    )  # fmt: skip
    before, after = tensors_of(source), tensors_of(out)
    old, new = ({name: torch.from_numpy(v.copy()) for name, v in found.items()} for found in (before, after))
    part = torch.from_numpy(x[calibration_part(tmp_path / "d.npz", document)])

    def layer(name, inputs, **how):
        return share(F.conv2d(inputs, new[name] - old[name], **how), F.conv2d(inputs, old[name], **how))

    def norm(inputs, number):
        mean, variance = new[f"mean{number}"], new[f"var{number}"]
        assert torch.allclose(mean, inputs.mean((0, 2, 3)), atol=1e-4)
        assert torch.allclose(variance, inputs.var((0, 2, 3), correction=0), rtol=1e-4)
        return F.batch_norm(inputs, mean, variance, new["scale"], new["bias"])

    expected = {"w1": layer("w1", part, padding=1)}
    c = F.relu(norm(F.conv2d(part, new["w1"], padding=1), 1))
    expected["w2"] = layer("w2", c, padding=1, groups=2)
    f = norm(F.conv2d(c, new["w2"], padding=1, groups=2), 2) + c
    expected["w3"] = layer("w3", f)
    found = {row.name: row.output.error for row in document.layers}
    assert found == pytest.approx(expected, rel=1e-3)
    for row in document.layers:
        assert method == "wanda" or row.output.error <= row.output.magnitude_error * (1 + 1e-9)
    assert verify_path(out, NMPattern(2, 4)).verdict == "pass"
    assert (np.count_nonzero(after["w3"].reshape(16, 2, 4), axis=-1) <= 1).all()
    assert (document.calibrated.norms.recalibrated, document.calibrated.norms.total) == (2, 2)
    # A method that changes nothing keeps the bits of what stays.
    if method != "obs":
        assert all((after[name] == before[name])[after[name] != 0].all() for name in ("w1", "w2", "w3"))


def test_agreement_is_that_of_the_written_file_on_held_out_samples(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    source, out = convolutions(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    x = samples(tmp_path / "d.npz", (4, 6, 6))
    document = prune(source, out, tmp_path / "d.npz")
    held_out = np.setdiff1d(np.arange(SAMPLES), calibration_part(tmp_path / "d.npz", document))
    dense, pruned = (ort.InferenceSession(str(path)).run(None, {"x": x[held_out]})[0] for path in (source, out))
    error = np.linalg.norm((pruned - dense).astype(np.float64)) / np.linalg.norm(dense.astype(np.float64))
    assert document.calibrated.relative_error == pytest.approx(error, rel=1e-3)
    assert document.calibrated.agreement.samples == len(held_out)


def test_everything_but_weights_and_statistics_keeps_its_bytes_and_runs_repeat(tmp_path):
    source = convolutions(tmp_path / "a.onnx")
    samples(tmp_path / "d.npz", (4, 6, 6))
    for name in ("b.onnx", "c.onnx"):
        prune(source, tmp_path / name, tmp_path / "d.npz", exclude=("w3",))
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()
    models = [onnx.load(path) for path in (source, tmp_path / "b.onnx")]
    changed = [a.name for a, b in zip(*(model.graph.initializer for model in models), strict=True) if a != b]
    assert changed == ["w1", "w2"]
    for model in models:
        for tensor in model.graph.initializer:
            if tensor.name in changed:
                tensor.ClearField("raw_data")
    assert models[0] == models[1]


def products(path, dtype, *, external=False, form="initializer"):
    """Two products around a Relu, their weights in the form and type that is asked for."""
    rng = np.random.default_rng(3)
    up, down = (rng.standard_normal(shape).astype(dtype) for shape in ((8, 16), (16, 8)))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "down"], ["y"], name="second"),
    ]
    weights, functions = {"up": up, "down": down}, []
    if form == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["up"], value=numpy_helper.from_array(up, "v")))
        del weights["up"]
    if form == "transposed":
        weights["up"] = np.ascontiguousarray(up.T)
        nodes[0] = helper.make_node("MatMul", ["x", "turned"], ["a"], name="first")
        nodes.insert(0, helper.make_node("Transpose", ["up"], ["turned"]))
    if form == "function":
        inner = [helper.make_node("MatMul", ["p", "q"], ["r"]), helper.make_node("Relu", ["r"], ["s"])]
        functions = [helper.make_function("own", "Up", ["p", "q"], ["s"], inner, [helper.make_opsetid("", 20)])]
        nodes[:2] = [helper.make_node("Up", ["x", "up"], ["b"], name="first", domain="own")]
    return save_network(path, nodes, weights, [4, 8], [4, 8], dtype=kind, functions=functions, external=external)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("form", ["initializer", "constant", "transposed", "function"])
def test_types_and_forms_of_storage(tmp_path, dtype, external, form):
    source, out = products(tmp_path / "a.onnx", dtype, external=external, form=form), tmp_path / "o" / "b.onnx"
    out.parent.mkdir()
    # bfloat16 is computed in float32, inputs too.
    narrow = np.float32 if dtype == ml_dtypes.bfloat16 else dtype
    x = samples(tmp_path / "d.npz", (4, 8), dtype=narrow)
    document = prune(source, out, tmp_path / "d.npz", layers={"*": NMPattern(2, 4)})
    pruned = [row for row in document.layers if row.pattern]
    assert len(pruned) == 2
    assert document.verdict == "pass"
    first = pruned[0]
    part = x[calibration_part(tmp_path / "d.npz", document)].reshape(-1, 8).astype(np.float64)
    old, new = (stored_values(path, form).astype(np.float64) for path in (source, out))
    assert first.output.error == pytest.approx(((part @ (new - old)) ** 2).sum() / ((part @ old) ** 2).sum(), rel=1e-3)
    assert (np.count_nonzero(new.reshape(2, 4, 16), axis=1) <= 2).all()
    assert not np.array_equal(new[new != 0], old[new != 0])


def stored_values(path, form):
    model = onnx.load(path)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    stored |= {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}
    values = numpy_helper.to_array(stored["up"])
    return values.T if form == "transposed" else values


def test_a_shared_weight_is_pruned_on_the_inputs_of_all_that_read_it(tmp_path):
    rng = np.random.default_rng(4)
    w = rng.standard_normal((8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="two"),
    ]
    source, out = save_network(tmp_path / "a.onnx", nodes, {"w": w}, [3, 8], [3, 8]), tmp_path / "b.onnx"
    x = samples(tmp_path / "d.npz", (3, 8))
    (row,) = prune(source, out, tmp_path / "d.npz", layers={"w": NMPattern(2, 4)}).layers
    document = prune(source, tmp_path / "c.onnx", tmp_path / "d.npz", layers={"w": NMPattern(2, 4)})
    part = x[calibration_part(tmp_path / "d.npz", document)].reshape(-1, 8).astype(np.float64)
    rows = np.concatenate([part, np.maximum(part @ w, 0)])
    change = tensors_of(out)["w"].astype(np.float64) - w
    assert row.output.error == pytest.approx(((rows @ change) ** 2).sum() / ((rows @ w) ** 2).sum(), rel=1e-4)


def test_statistics_that_two_nodes_share_are_left(tmp_path):
    source, out = convolutions(tmp_path / "a.onnx", shared_norm=True), tmp_path / "b.onnx"
    samples(tmp_path / "d.npz", (4, 6, 6))
    document = prune(source, out, tmp_path / "d.npz", recalibrate_bn=True)
    norms = document.calibrated.norms
    assert (norms.recalibrated, norms.shared, norms.total) == (0, 2, 2)
    assert np.array_equal(tensors_of(out)["var1"], tensors_of(source)["var1"])


def test_layers_inside_bodies_stay_dense_and_say_why(tmp_path):
    rng = np.random.default_rng(5)
    body = helper.make_graph(
        [helper.make_node("MatMul", ["a", "inner"], ["o"], name="hidden")],
        "then",
        [],
        [helper.make_tensor_value_info("o", FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "outer"], ["a"], name="seen"),
        helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=body),
    ]
    weights = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in ("outer", "inner")}
    weights["yes"] = np.array(True)
    source = save_network(tmp_path / "a.onnx", nodes, weights, [2, 8], [2, 8])
    samples(tmp_path / "d.npz", (2, 8))
    layers = {"*er": NMPattern(2, 4)}
    document = prune(source, tmp_path / "b.onnx", tmp_path / "d.npz", layers=layers)
    rows = {row.name: row for row in document.layers}
    assert rows["outer"].pattern == "2:4"
    assert rows["inner"].pattern is None
    assert "its inputs are not seen" in rows["inner"].reason
    assert np.array_equal(tensors_of(tmp_path / "b.onnx")["inner"], weights["inner"])


def test_max_drop_keeps_the_most_sensitive_layers_dense(tmp_path):
    source = convolutions(tmp_path / "a.onnx")
    samples(tmp_path / "d.npz", (4, 6, 6))
    free = prune(source, tmp_path / "b.onnx", tmp_path / "d.npz")
    limit = 100 * free.calibrated.relative_error * 0.8
    held = prune(source, tmp_path / "c.onnx", tmp_path / "d.npz", max_drop=limit)
    assert 100 * held.calibrated.relative_error <= limit
    kept = held.calibrated.kept_dense
    assert kept == tuple(entry.layer for entry in held.calibrated.sensitivity)[: len(kept)] != ()
    assert [row.name for row in held.layers if row.reason.startswith("kept dense by --max-drop")] == [
        row.name for row in held.layers if row.name in kept
    ]
    assert all(np.array_equal(tensors_of(tmp_path / "c.onnx")[n], tensors_of(source)[n]) for n in kept)
    missed = prune(source, tmp_path / "e.onnx", tmp_path / "d.npz", max_drop=0.0)
    assert missed.verdict == "fail"
    assert "more than --max-drop 0" in missed.problems[0]
    assert not (tmp_path / "e.onnx").exists()
    assert not (tmp_path / "e.prune.json").exists()


def test_a_narrow_memory_bound_changes_nothing_but_what_runs_again(tmp_path):
    path = convolutions(tmp_path / "a.onnx")
    x = samples(tmp_path / "d.npz", (4, 6, 6))
    batches = [x[at : at + 8] for at in range(0, SAMPLES, 8)]
    seen = {}
    for most in (1 << 30, 0, batches[0].nbytes * len(batches)):
        graph = RunnableGraph(path)
        stream = ActivationStream(graph, lambda: (({"x": batch}, len(batch)) for batch in batches), frontier_bytes=most)
        found = []
        for name, left in (("x", ["x", "c", "f"]), ("c", ["c", "f"]), ("f", ["f"])):
            visited = stream.visit(graph.readers(name)[0], [name], left)
            found.append(np.concatenate([feed[name] for feed, _ in visited]))
            graph.replace("w2", graph.weight("w2") * 0.5)
        seen[most] = found
    first, *others = seen.values()
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_what_is_not_finite_is_named_and_nothing_is_written(tmp_path):
    source = convolutions(tmp_path / "a.onnx")
    x = samples(tmp_path / "d.npz", (4, 6, 6))
    x[::2] = np.nan
    np.savez(tmp_path / "d.npz", x=x)
    with pytest.raises(InputError, match="activation 'x' is NaN or infinite"):
        prune(source, tmp_path / "b.onnx", tmp_path / "d.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "d.npz"]
