"""Calibration is held against the file as it was given: folded activations, outputs by themselves, odd inputs."""

import int8_networks as nets
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from nm2trt.calibration import stripping
from nm2trt.calibration.agreement import OutputChecker
from nm2trt.calibration.feeds import ArraySource, Batch
from nm2trt.calibration.graph import Port, load_proto
from nm2trt.calibration.run import calibrate
from nm2trt.calibration.settings import Settings
from nm2trt.calibration.stripping import without_quantization
from nm2trt.errors import InputError

node = helper.make_node
RNG = np.random.default_rng(0)
X = RNG.standard_normal((48, 8, 6, 6)).astype(np.float32)


def activated(kind, *, minimum=0.0, maximum=6.0):
    """Two convolutions, each with an activation; scaled so that a Relu6 clips at both ends."""
    bounds = {"zero": np.float32(minimum), "top": np.float32(maximum)}
    activation = {
        "Relu": lambda i, o: node("Relu", [i], [o]),
        "Clip": lambda i, o: node("Clip", [i, "zero", "top"], [o]),
    }
    make = activation[kind]
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], name="c1", pads=[1] * 4), make("c1", "a1"),
        node("Conv", ["a1", "w2"], ["c2"], name="c2", pads=[1] * 4), make("c2", "a2"),
        node("GlobalAveragePool", ["a2"], ["y"], name="p"),
    ]  # fmt: skip
    info = helper.make_tensor_value_info
    weights = {"w1": RNG.standard_normal((8, 8, 3, 3)) / 2, "w2": RNG.standard_normal((8, 8, 3, 3)) / 6}
    arrays = {**{name: value.astype(np.float32) for name, value in weights.items()}, **bounds}
    graph = helper.make_graph(
        nodes, "g", [info("x", 1, ["n", 8, 6, 6])], [info("y", 1, ["n", 8, 1, 1])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantized(model, folder, **options):
    from onnxruntime.quantization import QuantType, quantize_static

    class Reader:
        def __init__(self):
            self.left = [{"x": X}]

        def get_next(self):
            return self.left.pop() if self.left else None

    onnx.save(model, folder / "f.onnx")
    quantize_static(folder / "f.onnx", folder / "q.onnx", Reader(), activation_type=QuantType.QUInt8, **options)
    return folder / "q.onnx"


def run(model):
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]


@pytest.mark.parametrize("kind", ["Relu", "Clip"])
def test_an_activation_that_was_folded_into_a_range_comes_back(kind, tmp_path):
    path = quantized(activated(kind), tmp_path)
    assert not {"Relu", "Clip"} & {one.op_type for one in onnx.load(path).graph.node}, "the peer folds it no more"
    restored = []
    made = without_quantization(load_proto(path), path, restored)
    assert len(restored) == 2
    assert {"Relu", "Clip"} & {one.op_type for one in made.graph.node} == {kind}
    before, after = run(tmp_path / "f.onnx"), run(made)
    assert np.abs(before - after).max() < 0.02 * np.abs(before).max()


@pytest.mark.parametrize(("minimum", "maximum"), [(-1.0, 1.0), (0.0, 0.4), (-0.25, 0.75), (0.0, 3.0)])
def test_a_clip_that_ends_anywhere_comes_back(minimum, maximum, tmp_path):
    path = quantized(activated("Clip", minimum=minimum, maximum=maximum), tmp_path)
    assert "Clip" not in {one.op_type for one in onnx.load(path).graph.node}, "the peer folds it no more"
    np.savez(tmp_path / "s.npz", x=X)
    document = calibrate(path, tmp_path / "o.onnx", Settings(data=str(tmp_path / "s.npz"), resymmetrize=True))
    assert any("put back" in note for note in document.notes)
    before, after = run(tmp_path / "f.onnx"), run(onnx.load(tmp_path / "o.onnx"))
    assert np.linalg.norm(before - after) < 0.05 * np.linalg.norm(before)


def test_a_folder_of_another_format_is_told_by_its_name(tmp_path):
    (tmp_path / "zero_to_fp32.py").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="is a DeepSpeed checkpoint"):
        calibrate(tmp_path, tmp_path / "o.onnx", Settings(data="s.npz"))
    (tmp_path / "zero_to_fp32.py").unlink()
    with pytest.raises(InputError, match=r"holds no model\.onnx"):
        calibrate(tmp_path, tmp_path / "o.onnx", Settings(data="s.npz"))


def test_an_activation_that_is_still_there_is_not_doubled(tmp_path):
    from onnxruntime.quantization import QuantType

    path = quantized(
        activated("Relu"), tmp_path, weight_type=QuantType.QInt8, op_types_to_quantize=["GlobalAveragePool"]
    )
    restored = []
    made = without_quantization(load_proto(path), path, restored)
    assert restored == []
    assert sum(one.op_type == "Relu" for one in made.graph.node) == 2


def test_a_model_whose_meaning_is_lost_with_its_quantization_is_refused(tmp_path, monkeypatch):
    path = quantized(activated("Relu"), tmp_path)
    # As if the ranges did not tell where an activation was folded.
    monkeypatch.setattr(stripping, "_folded_ends", lambda *_: None)
    np.savez(tmp_path / "s.npz", x=X)
    settings = Settings(data=str(tmp_path / "s.npz"), resymmetrize=True)
    with pytest.raises(InputError, match="computes something else without its quantization"):
        calibrate(path, tmp_path / "o.onnx", settings)
    assert not (tmp_path / "o.onnx").exists()


def two_outputs(bias):
    """A large output, a small one and integers; `bias` moves the small one."""
    nodes = [
        node("Mul", ["x", "k"], ["large"], name="k"), node("Add", ["x", "b"], ["small"], name="b"),
        node("ArgMax", ["small"], ["index"], axis=1, keepdims=0, name="i"),
    ]  # fmt: skip
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", 1, ["n", 4])],
        [info("large", 1, ["n", 4]), info("small", 1, ["n", 4]), info("index", 7, ["n"])],
        [numpy_helper.from_array(np.float32(1e6), "k"), numpy_helper.from_array(np.array(bias, np.float32), "b")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_small_output_is_not_lost_beside_a_large_one():
    x = RNG.standard_normal((6, 4)).astype(np.float32)
    checker = OutputChecker(two_outputs([0.0] * 4), lambda: [Batch({"x": x}, 6)], None, "")
    found = checker.agreement(two_outputs([9.0, 0.0, 0.0, 0.0]))
    by_name = {one.name: one for one in found.outputs}
    assert by_name["large"].sqnr_db == 200
    expected = 10 * np.log10(np.square(x.astype(np.float64)).sum() / (6 * 81.0))
    assert by_name["small"].sqnr_db == pytest.approx(expected, abs=1e-3)
    assert found.sqnr_db == by_name["small"].sqnr_db
    moved = x + np.array([9.0, 0, 0, 0], np.float32)
    assert by_name["index"].equal_share == pytest.approx(np.mean(x.argmax(1) == moved.argmax(1)))


def test_a_nan_on_one_side_is_a_problem_and_swallows_nothing():
    x = RNG.standard_normal((6, 4)).astype(np.float32)
    checker = OutputChecker(two_outputs([0.0] * 4), lambda: [Batch({"x": x}, 6)], None, "")
    found = checker.agreement(two_outputs([np.nan, 0.0, 0.0, 0.0]))
    small = next(one for one in found.outputs if one.name == "small")
    assert "6 of 24 elements are NaN" in small.problem
    assert np.isfinite(found.sqnr_db)


def source(arrays, ports):
    return ArraySource(arrays, None, ports, samples=6, held_out=6, where="s.npz")


X2 = RNG.standard_normal((10, 4)).astype(np.float32)
PORT = Port("x", "float32", (None, 4))


@pytest.mark.parametrize("value", [np.float32(2), np.full(10, 2, np.float32)])
def test_an_input_without_a_batch_takes_one_value(value):
    made = source({"x": X2, "speed": value}, [PORT, Port("speed", "float32", (), None)])
    batch = next(made.calibration(4))
    assert batch.feed["speed"].shape == ()
    assert batch.feed["speed"] == 2
    assert batch.feed["x"].shape == (4, 4)


def test_values_that_differ_are_fed_one_sample_at_a_time():
    speeds = np.arange(10, dtype=np.float32)
    made = source({"x": X2, "speed": speeds}, [PORT, Port("speed", "float32", (), None)])
    batches = [*made.calibration(4), *made.held_out(4)]
    assert len(batches) == 10
    for batch in batches:
        row = int(batch.feed["speed"])
        assert np.array_equal(batch.feed["x"], X2[row : row + 1])


@pytest.mark.parametrize("first", [True, False])
def test_a_state_with_its_batch_in_the_middle(first):
    state = RNG.standard_normal((2, 10, 3)).astype(np.float32)
    given = np.moveaxis(state, 1, 0) if first else state
    made = source({"x": X2, "state": given}, [PORT, Port("state", "float32", (2, None, 3), 1)])
    batch = next(made.calibration(4))
    rows = [int(np.flatnonzero((row == X2).all(axis=1))[0]) for row in batch.feed["x"]]
    assert np.array_equal(batch.feed["state"], state[:, rows])


def test_a_network_of_nameless_nodes_is_calibrated_under_names(tmp_path):
    model = nets.residual()
    for one in model.graph.node:
        one.name = ""
    path = nets.saved(model, tmp_path / "m.onnx")
    names = [one.name for one in load_proto(path).graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
