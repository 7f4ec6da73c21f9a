"""Inputs beside the usual [batch, ...]: scalars, states with their batch in the middle, named and nameless axes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_graphs import model_of, value

from nm2trt.artifacts import BatchRange
from nm2trt.errors import ConfigError, InputError
from nm2trt.export import check_numerics, export_source, noise, samples_of_file
from nm2trt.export.inputs import parse_fixed, parse_inputs, parse_sizes

node = helper.make_node
W = (np.random.default_rng(0).standard_normal((8, 6))).astype(np.float32)


def speech(path, *, x=("n", 8), state=(2, "n", 6), speed=()):
    """y = (x W + mean of the state) * speed; the new state has the batch in its middle."""
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="fc"),
        node("ReduceMean", ["state"], ["s"], axes=[0], keepdims=0, name="s"),
        node("Add", ["h", "s"], ["a"], name="a"),
        node("Mul", ["a", "speed"], ["y"], name="y"),
        node("Mul", ["state", "speed"], ["new"], name="new"),
        node("ReduceMax", ["y"], ["peak"], name="peak", keepdims=0),
    ]
    inputs = [value("x", x), value("state", state), value("speed", speed)]
    outputs = [value("y", None), value("new", None), value("peak", [])]
    onnx.save(model_of(nodes, {"w": W}, inputs, outputs, opset=17), path)
    return path


def compared(exported, path, samples, batch):
    exported.write(path)
    return check_numerics(exported.reference, path, samples, batch, tolerance=1e-4, precision="fp32")


def test_scalars_and_states_are_fed_and_compared_at_every_batch(tmp_path):
    exported = export_source(speech(tmp_path / "m.onnx"), fixed={"speed": (1.5,)})
    assert [(one.name, one.shape, one.batched, one.batch_axis) for one in exported.inputs] == [
        ("x", (8,), True, 0),
        ("state", (2, 6), True, 1),
        ("speed", (), False, 0),
    ]
    samples = noise(exported.inputs, 8)
    piece = samples.piece(2, 5)
    assert piece["state"].shape == (2, 3, 6)
    assert np.array_equal(piece["state"][:, 1], samples.feeds["state"][3])
    assert piece["speed"] == np.float32(1.5)
    record = compared(exported, tmp_path / "o.onnx", samples, BatchRange(min=1, opt=3, max=8))
    assert record.passed
    assert [one.name for one in record.outputs] == ["y", "new", "peak"]
    assert "speed is 1.5" in record.inputs


def test_a_wrong_output_of_rank_0_or_with_its_batch_in_the_middle_is_found(tmp_path):
    exported = export_source(speech(tmp_path / "m.onnx"))
    model = onnx.load(tmp_path / "m.onnx")
    for name in ("new", "peak"):
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        target = next(one for one in changed.graph.node if one.output[0] == name)
        target.output[0] = "inner"
        changed.graph.node.append(node("Abs", ["inner"], ["abs"]))
        changed.graph.node.append(node("Sqrt", ["abs"], [name]))
        onnx.save(changed, tmp_path / "wrong.onnx")
        record = check_numerics(
            exported.reference,
            tmp_path / "wrong.onnx",
            noise(exported.inputs, 8),
            BatchRange(min=1, opt=3, max=8),
            tolerance=1e-4,
            precision="fp32",
        )
        assert not record.passed
        assert {one.name for one in record.outputs if one.reason != "agree"} == {name}


@pytest.mark.parametrize("layout", ["network", "samples first"])
def test_samples_of_a_file_in_both_layouts(layout, tmp_path):
    exported = export_source(speech(tmp_path / "m.onnx"))
    random = np.random.default_rng(1)
    state = random.standard_normal((2, 5, 6)).astype(np.float32)
    arrays = {
        "x": random.standard_normal((5, 8)).astype(np.float32),
        "state": state if layout == "network" else np.moveaxis(state, 1, 0),
        "speed": np.float32(2) if layout == "network" else np.full(5, 2, np.float32),
    }
    np.savez(tmp_path / "s.npz", **arrays)
    samples = samples_of_file(tmp_path / "s.npz", exported.inputs)
    piece = samples.piece(1, 4)
    assert np.array_equal(piece["state"], state[:, 1:4])
    assert piece["speed"] == 2
    arrays["speed"] = np.arange(5, dtype=np.float32)
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(InputError, match="speed has no batch"):
        samples_of_file(tmp_path / "s.npz", exported.inputs)


def test_named_axes_are_settled_and_a_star_names_the_batch(tmp_path):
    path = speech(tmp_path / "m.onnx", x=("time", 8), state=(2, "time", 6))
    exported = export_source(path, sizes={"time": 4})
    assert not exported.dynamic
    assert exported.inputs[1].shape == (2, 4, 6)
    nameless = speech(tmp_path / "n.onnx", x=(None, None), state=(2, None, 6))
    with pytest.raises(InputError, match=r"x \[\?, \?\], state \[2, \?, 6\]"):
        export_source(nameless)
    exported = export_source(nameless, inputs=parse_inputs(["x=8", "state=2x*x6"]))
    assert [one.batch_axis for one in exported.inputs if one.batched] == [0, 1]
    assert compared(exported, tmp_path / "o.onnx", noise(exported.inputs, 8), BatchRange(min=1, opt=2, max=8)).passed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inputs": parse_inputs(["state=1,6"])}, r"cannot be \[1, 6\].*one sample of it is 2x6"),
        ({"inputs": parse_inputs(["other=1"])}, "no input other"),
        ({"sizes": {"time": 3}}, "no input of m.onnx has an axis time; it has n"),
        ({"fixed": {"other": (1.0,)}}, "no input other"),
        ({"fixed": {"x": (1.0, 2.0)}}, r"x takes 8 values"),
    ],
)
def test_what_does_not_fit_the_file_is_told(options, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        export_source(speech(tmp_path / "m.onnx"), **options)


def test_values_are_drawn_within_the_bounds(tmp_path):
    path = speech(tmp_path / "m.onnx")
    exported = export_source(path, inputs=parse_inputs(["x=8@0.25..0.5"]), fixed=parse_fixed(["state=3"]))
    samples = noise(exported.inputs, 16)
    assert 0.25 <= samples.feeds["x"].min() < samples.feeds["x"].max() <= 0.5
    assert (samples.feeds["state"] == 3).all()
    (ids,) = parse_inputs(["ids=4:int64@7..9"])
    assert set(np.unique(noise([ids], 64).feeds["ids"])) == {7, 8, 9}


@pytest.mark.parametrize("text", ["x", "x=", "=1", "x=1..2", "x=a", "x=1,,2", "x=nan"])
def test_what_is_no_fixed_value_is_refused(text):
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        parse_fixed([text])


@pytest.mark.parametrize("text", ["n", "n=", "n=-1", "n=1.5", "=4"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="AXIS=SIZE"):
        parse_sizes([text])


@pytest.mark.parametrize("text", ["x=2x*x*", "x=2xx3", "x=3@5..1", "x=3@1", "x=3:float31"])
def test_what_is_no_input_is_refused(text):
    with pytest.raises(ConfigError):
        parse_inputs([text])


def test_an_integer_output_that_differs_in_one_place_fails_in_float32(tmp_path):
    nodes = [node("MatMul", ["x", "w"], ["h"], name="fc"), node("ArgMax", ["h"], ["y"], axis=-1, keepdims=0, name="am")]
    outputs = [value("y", None, TensorProto.INT64)]
    onnx.save(model_of(nodes, {"w": W}, [value("x", ["n", 8])], outputs), tmp_path / "m.onnx")
    exported = export_source(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.node[1].attribute[0].i = -1
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.roll(W, 1, axis=1), "w"))
    onnx.save(model, tmp_path / "wrong.onnx")
    batch = BatchRange(min=1, opt=4, max=8)
    record = check_numerics(
        exported.reference, tmp_path / "wrong.onnx", noise(exported.inputs, 8), batch, tolerance=1e-4, precision="fp32"
    )
    assert not record.passed
    assert record.outputs[0].reason == "not-equal"
    assert record.outputs[0].mismatches > 0
