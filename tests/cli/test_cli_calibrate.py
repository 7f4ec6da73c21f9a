"""`nm2trt calibrate` as a user runs it."""

import json
import struct

import int8_networks as nets
import numpy as np
import onnx
import pytest
from helpers import assert_one_error_line, nm2trt_inline, requires
from onnx import numpy_helper

RNG = np.random.default_rng(5)


@pytest.fixture
def net(tmp_path):
    return nets.saved(nets.residual(), tmp_path / "net.onnx")


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "data.npz"
    x = RNG.standard_normal((40, 3, 8, 8)).astype(np.float32)
    np.savez(path, x=x, labels=RNG.integers(0, 5, 40))
    return path


def run(*arguments):
    return nm2trt_inline("calibrate", "--builder", "none", *arguments)


def left(tmp_path, *known):
    return sorted(path.name for path in tmp_path.iterdir() if path not in known)


def test_writes_the_model_and_the_proof(net, npz, tmp_path):
    out = tmp_path / "int8.onnx"
    result = run(net, "--data", npz, "-o", out, "--plot", tmp_path / "r.png", "--sensitivity")
    assert result.returncode == 0, result.stderr
    # Only the thread count is said there.
    assert [line for line in result.stderr.splitlines() if not line.startswith("CPU: ")] == []
    assert "pattern: 5 of 5 sparse layers still hold it; 5 of them are INT8 from end to end" in result.stdout
    assert "most sensitive layers" in result.stdout
    assert result.stdout.splitlines()[-1] == "verdict: pass"
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / "int8.calibration.json").read_text())
    assert document["schema"] == "nm2trt.calibration/1"
    assert document["samples"] == 32
    assert document["agreement"]["samples"] == 8
    assert document["agreement"]["cosine"] > 0.99
    assert [entry["layer"] for entry in document["sensitivity"]]
    assert str(tmp_path) not in json.dumps(document)
    scales = {tensor["tensor"]: tensor["scale"] for tensor in document["tensors"]}
    stored = {tensor.name: tensor for tensor in onnx.load(out).graph.initializer}
    for tensor, scale in scales.items():
        assert numpy_helper.to_array(stored[f"{tensor}_scale"]) == pytest.approx(scale)
    assert left(tmp_path, net, npz, out) == ["int8.calibration.json", "r.png"]


def test_json_prints_the_document_and_nothing_else(net, npz, tmp_path):
    result = run(net, "--data", npz, "-o", tmp_path / "o.onnx", "--json", "--method", "percentile:99.9")
    document = json.loads(result.stdout)
    assert (document["method"], document["verdict"]) == ("percentile:99.9", "pass")
    assert document == json.loads((tmp_path / "o.calibration.json").read_text())


@requires(rtx=True)
def test_tensorrt_rtx_compiles_int8_layers_with_fused_additions_for_sm80(tmp_path, npz):
    net = nets.saved(nets.residual(channels=32), tmp_path / "net.onnx")
    for weights in ("qdq", "int8"):
        out = tmp_path / f"{weights}.onnx"
        arguments = ("--data", npz, "-o", out, "--weights", weights, "--builder", "tensorrt-rtx", "--json")
        result = nm2trt_inline("calibrate", net, *arguments)
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)["compiled"]
        assert (found["error"], found["sm"]) == (None, "80")
        assert (found["int8_layers"], found["layers"]) == (7, 7)
        assert (found["residual_adds_fused"], found["residual_adds"]) == (2, 2)
        assert "nothing here tells whether a sparse kernel runs" in found["note"]


def test_several_inputs_come_from_one_npz(tmp_path):
    net = nets.saved(nets.two_inputs(), tmp_path / "net.onnx")
    data = tmp_path / "d.npz"
    np.savez_compressed(data, ids=RNG.integers(0, 11, (30, 6)), mask=np.ones((30, 6), np.float32))
    result = run(net, "--data", data, "-o", tmp_path / "o.onnx", "--placement", "sparse")
    assert result.returncode == 0, result.stderr
    assert "outputs: cosine 0.99" in result.stdout


def test_a_function_of_the_users_own_is_streamed(net, tmp_path, monkeypatch):
    (tmp_path / "mine_calib.py").write_text(
        "import numpy as np\n"
        "def batches():\n"
        "    rng = np.random.default_rng(0)\n"
        "    for _ in range(6):\n"
        "        yield {'x': rng.standard_normal((4, 3, 8, 8)).astype('float32'), 'labels': np.zeros(4, int)}\n"
    )
    monkeypatch.chdir(tmp_path)
    result = run(net, "--data", "mine_calib:batches", "-o", "o.onnx", "--samples", "16", "--json")
    document = json.loads(result.stdout)
    assert (document["samples"], document["agreement"]["samples"]) == (16, 8)
    assert document["agreement"]["score_name"] == "accuracy"


def test_images_need_and_get_a_stated_preprocessing(net, tmp_path):
    from PIL import Image

    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for index in range(6):
        pixels = RNG.integers(0, 255, (9 + index, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("deeper" if index % 2 else ".") / f"{index}.png")
    out = tmp_path / "o.onnx"
    assert_one_error_line(run(net, "--data", folder, "-o", out), 2, "preprocessing must be stated", "imagenet")
    result = run(net, "--data", folder, "-o", out, "--preprocess", "resize=8 crop=8 mean=0.5 std=0.25")
    assert result.returncode == 0, result.stderr
    document = json.loads((tmp_path / "o.calibration.json").read_text())
    assert "resize=8 crop=8 mean=0.5 std=0.25" in document["data"]
    seen = next(tensor for tensor in document["tensors"] if tensor["tensor"] == "x")
    assert -2 <= seen["smallest"] < 0 < seen["largest"] <= 2
    wrong = run(net, "--data", folder, "-o", tmp_path / "p.onnx", "--preprocess", "resize=9 crop=9")
    assert_one_error_line(wrong, 3, "[1, 3, 9, 9]", "[?, 3, 8, 8]")
    for spec in ("zoom=3", "crop=no", "mean=1,2", "std=0"):
        assert_one_error_line(run(net, "--data", folder, "-o", tmp_path / "p.onnx", "--preprocess", spec), 2)


def test_max_drop_keeps_the_worst_layers_in_floating_point(net, tmp_path):
    x = RNG.standard_normal((400, 3, 8, 8)).astype(np.float32)
    import onnxruntime

    session = onnxruntime.InferenceSession(net, providers=["CPUExecutionProvider"])
    # The float network is right everywhere, so any change of its answer is a drop.
    np.savez(tmp_path / "d.npz", x=x, labels=session.run(None, {"x": x})[0].argmax(axis=1))
    out = tmp_path / "o.onnx"
    arguments = ("--data", tmp_path / "d.npz", "-o", out, "--method", "percentile:60", "--max-drop", "2", "--json")
    document = json.loads(run(net, *arguments).stdout)
    kept = document["kept_float"]
    assert kept == [entry["layer"] for entry in document["sensitivity"][: len(kept)]]
    assert kept
    drop = 100 * (document["agreement"]["score_before"] - document["agreement"]["score_after"])
    assert (drop <= 2) == (document["verdict"] == "pass")
    reasons = {layer["name"]: layer["why_not"] for layer in document["layers"]}
    assert all(reasons[name] == "kept in floating point by --max-drop" for name in kept)


def test_layers_are_left_out_by_name(net, npz, tmp_path):
    result = run(net, "--data", npz, "-o", tmp_path / "o.onnx", "--exclude", "fc", "--exclude", "c3.*", "--json")
    layers = {layer["name"]: layer for layer in json.loads(result.stdout)["layers"]}
    assert [name for name, layer in layers.items() if not layer["int8"]] == ["c3", "fc"]
    assert layers["fc"]["why_not"] == "left out by --exclude"
    everything = run(net, "--data", npz, "-o", tmp_path / "p.onnx", "--exclude", "*")
    assert_one_error_line(everything, 2, "no layer to quantize")


def test_an_old_cache_becomes_pairs_with_its_scales(net, tmp_path):
    tensors = ("x", "a", "b1", "f", "p", "g1", "j", "l")
    lines = [f"{name}: {struct.pack('>f', 0.01 * (i + 1)).hex()}" for i, name in enumerate(tensors)]
    cache = tmp_path / "calibration.cache"
    cache.write_text("\n".join(["TRT-8601-EntropyCalibration2", *lines, "unused: 3c010a14"]) + "\n")
    out = tmp_path / "o.onnx"
    result = run(net, "--cache", cache, "-o", out)
    assert result.returncode == 0, result.stderr
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(out).graph.initializer}
    for index, name in enumerate(tensors):
        assert stored[f"{name}_scale"] == pytest.approx(0.01 * (index + 1))
    assert "nothing tells how well" in result.stdout
    cache.write_text("\n".join(["TRT-8601-EntropyCalibration2", *lines[:3]]) + "\n")
    short = run(net, "--cache", cache, "-o", tmp_path / "p.onnx")
    assert_one_error_line(short, 3, "no scale for 5 of 8 tensors, first 'f'", "--data")


def test_a_quantized_model_is_refused_and_resymmetrized(net, npz, tmp_path):
    out = tmp_path / "o.onnx"
    assert run(net, "--data", npz, "-o", out).returncode == 0
    again = tmp_path / "again.onnx"
    assert_one_error_line(run(out, "--data", npz, "-o", again), 3, "quantized already", "--resymmetrize")
    result = run(out, "--data", npz, "-o", again, "--resymmetrize")
    assert result.returncode == 0, result.stderr
    assert "own quantization was taken out" in result.stdout
    assert "5 of 5 sparse layers still hold it" in result.stdout


def bad_data(tmp_path):
    x = RNG.standard_normal((8, 3, 8, 8)).astype(np.float32)
    nan = x.copy()
    nan[5, 0, 0, 0] = np.nan
    return {
        "empty": ({"x": x[:0]}, 3, "no sample"),
        "one": ({"x": x[:1]}, 3, "1 sample"),
        "shape": ({"x": x[:, :, :7]}, 3, "[8, 3, 7, 8], the network takes [?, 3, 8, 8]"),
        "dtype": ({"x": x.astype(np.float64)}, 3, "float64, the network takes float32"),
        "nan": ({"x": nan}, 3, "NaN or infinite"),
        "constant": ({"x": np.zeros_like(x)}, 3, "has no range"),
        "names": ({"a": x, "b": x}, 3, "no array 'x'"),
        "counts": ({"x": x, "labels": np.zeros(7, int)}, 3, "different numbers"),
        "labels": ({"x": x, "labels": np.zeros((8, 2))}, 3, "not [N] integers"),
    }


@pytest.mark.parametrize("case", list(bad_data(None)))
def test_bad_samples_cost_one_line_and_nothing_is_written(net, tmp_path, case):
    arrays, code, words = bad_data(tmp_path)[case]
    data = tmp_path / "d.npz"
    np.savez(data, **arrays)
    result = run(net, "--data", data, "-o", tmp_path / "o.onnx", "--samples", "8")
    if case == "nan" and result.returncode == 0:
        pytest.fail("the sample with NaN was not drawn")
    assert_one_error_line(result, code, words)
    assert left(tmp_path, net, data) == []


def bad_models():
    plain = nets.model(
        [nets.node("Relu", "r", ["x"], "y")], [("x", nets.FLOAT, ["n", 4])], [("y", nets.FLOAT, ["n", 4])], {}
    )
    asymmetric = nets.model(
        [
            nets.node("QuantizeLinear", "q", ["x", "s", "z"], "a"),
            nets.node("DequantizeLinear", "dq", ["a", "s", "z"], "b"),
            nets.node("MatMul", "m", ["b", "w"], "y"),
        ],
        [("x", nets.FLOAT, ["n", 4])],
        [("y", nets.FLOAT, ["n", 4])],
        {"s": np.float32(0.1), "z": np.uint8(128), "w": np.ones((4, 4), np.float32)},
    )
    return {"plain": (plain, "nothing to quantize"), "asymmetric": (asymmetric, "zero point 128")}


@pytest.mark.parametrize("case", list(bad_models()))
def test_models_that_cannot_be_calibrated_cost_one_line(tmp_path, npz, case):
    made, words = bad_models()[case]
    net = nets.saved(made, tmp_path / "m.onnx")
    result = run(net, "--data", npz, "-o", tmp_path / "o.onnx")
    assert_one_error_line(result, 3, words)
    assert left(tmp_path, net, npz) == []


def test_files_that_are_no_models_cost_one_line(tmp_path, npz):
    broken = tmp_path / "m.onnx"
    broken.write_bytes(b"\x08\x09nonsense")
    assert_one_error_line(run(broken, "--data", npz, "-o", tmp_path / "o.onnx"), 3, "ONNX")
    assert_one_error_line(run(tmp_path / "no.onnx", "--data", npz, "-o", tmp_path / "o.onnx"), 3, "no such file")
    assert left(tmp_path, broken, npz) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "kl"), "unknown method"),
        (("--placement", "all"), "unknown placement"),
        (("--weights", "fp4"), "unknown storage"),
        (("--samples", "0"), "less than 1"),
        (("--max-drop", "-1"), "--max-drop"),
        (("--preprocess", "imagenet"), "--preprocess"),
        (("--data", "nowhere"), "unknown data"),
    ],
)
def test_wrong_options_cost_one_line(net, npz, tmp_path, arguments, words):
    result = run(net, "--data", npz, "-o", tmp_path / "o.onnx", *arguments)
    assert_one_error_line(result, 2, words)
    assert left(tmp_path, net, npz) == []


def test_an_existing_output_is_only_replaced_if_nm2trt_wrote_it(net, npz, tmp_path):
    out = tmp_path / "o.onnx"
    out.write_bytes(b"dear")
    assert_one_error_line(run(net, "--data", npz, "-o", out), 2, "exists", "--force")
    assert_one_error_line(run(net, "--data", npz, "-o", out, "--force"), 2, "nm2trt did not write it")
    assert out.read_bytes() == b"dear"
    out.unlink()
    for force in ((), ("--force",)):
        assert run(net, "--data", npz, "-o", out, *force).returncode == 0
    before = net.read_bytes()
    assert_one_error_line(run(net, "--data", npz, "-o", net, "--force"), 2, "is the model itself")
    assert net.read_bytes() == before
    assert_one_error_line(run(net, "--data", npz, "-o", tmp_path / "no" / "o.onnx"), 2, "folder does not exist")
    assert_one_error_line(run(net, "--data", npz, "-o", tmp_path / "o.bin"), 2, "no .onnx")
