"""`nm2trt prune --data` as a user runs it."""

import json
import sys

import int8_networks as nets
import numpy as np
import onnx
import pytest
from helpers import assert_one_error_line, nm2trt, nm2trt_inline
from onnx import numpy_helper

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

RNG = np.random.default_rng(5)


@pytest.fixture
def net(tmp_path):
    made = nets.residual()
    for tensor in made.graph.initializer:
        if len(tensor.dims) > 1:
            values = np.random.default_rng(len(tensor.name)).standard_normal(tuple(tensor.dims))
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return nets.saved(made, tmp_path / "net.onnx")


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=RNG.standard_normal((40, 3, 8, 8)).astype(np.float32), labels=RNG.integers(0, 5, 40))
    return path


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_prints_what_each_layer_lost_and_writes_the_document(net, npz, tmp_path):
    out, plot = tmp_path / "out.onnx", tmp_path / "errors.png"
    result = nm2trt_inline("prune", net, "--data", npz, "-o", out, "--recalibrate-bn", "--plot", plot)
    assert result.returncode == 0, result.stderr
    assert "c1.weight" in result.stdout
    assert "by magnitude" in result.stdout
    assert "obs, damping 0.01, layer by layer on 32 samples" in result.stdout
    assert "the graph holds no BatchNormalization" in result.stdout
    assert "against the dense network on 8 held-out samples" in result.stdout
    assert result.stdout.splitlines()[-1].startswith(f"PASS {out}: 5 tensors pruned to 2:4 and verified, accuracy ")
    assert plot.read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / "out.prune.json").read_text())
    assert (document["schema"], document["source"]) == ("nm2trt.prune/1", "net.onnx")
    assert str(tmp_path) not in json.dumps(document)
    assert document["calibrated"]["agreement"]["score_name"] == "accuracy"
    assert left(tmp_path) == ["data.npz", "errors.png", "net.onnx", "out.onnx", "out.prune.json"]
    assert nm2trt_inline("verify", out).returncode == 0


def test_json_methods_and_exclusions(net, npz, tmp_path):
    errors = {}
    for method in ("obs", "wanda", "magnitude"):
        out = tmp_path / f"{method}.onnx"
        options = ("--method", method, "--layer", "c3=1:4", "--exclude", "proj", "--json", "-o", out)
        result = nm2trt_inline("prune", net, "--samples", npz, *options)
        document = json.loads(result.stdout)
        assert (result.returncode, document["calibrated"]["method"]) == (0, method)
        rows = {row["name"]: row for row in document["layers"]}
        assert (rows["c3.weight"]["pattern"], rows["proj.weight"]["pattern"]) == ("1:4", None)
        errors[method] = rows["c1.weight"]["output"]
    # All three see the same inputs of the first layer.
    assert errors["magnitude"]["error"] == pytest.approx(errors["magnitude"]["magnitude_error"], rel=1e-6)
    assert errors["obs"]["error"] < errors["wanda"]["error"]
    assert errors["obs"]["magnitude_error"] == pytest.approx(errors["wanda"]["magnitude_error"], rel=1e-6)


def test_recommend_ranks_by_what_pruning_found(npz, tmp_path):
    net, out = nets.saved(nets.residual(channels=64), tmp_path / "net.onnx"), tmp_path / "out.onnx"
    options = ("--layer", "*=1:4", "--calibration-samples", "16", "--sensitivity")
    assert nm2trt_inline("prune", net, "--data", npz, *options, "-o", out).returncode == 0
    found = json.loads((tmp_path / "out.prune.json").read_text())["calibrated"]["sensitivity"]
    assert {entry["layer"] for entry in found} >= {"c1.weight", "c4.weight", "fc.weight"}
    options = ("--gpu", "a100-sxm-80gb", "--precision", "fp16", "--batch", "64", "--json")
    result = nm2trt_inline("recommend", net, "--sensitivity", tmp_path / "out.prune.json", *options)
    assert result.returncode in (0, 1), result.stderr
    assert "stand-in" not in result.stdout
    steps = [step for step in json.loads(result.stdout)["steps"] if step["sensitivity"] is not None]
    # Energy of the noise over that of the outputs.
    costs = {entry["layer"]: 10 ** (-entry["sqnr_db"] / 10) for entry in found}
    assert steps
    assert all(step["sensitivity"] == pytest.approx(costs[step["added"]]) for step in steps)


def test_a_score_that_drops_too_far_is_a_failed_check(net, npz, tmp_path):
    x = np.load(npz)["x"]
    np.savez(npz, x=x)
    result = nm2trt_inline("prune", net, "--data", npz, "--max-drop", "0", "-o", tmp_path / "out.onnx")
    assert result.returncode == 1
    assert "was not written: the outputs differ by" in result.stdout
    assert left(tmp_path) == ["data.npz", "net.onnx"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--method", "obs"), 2, ("--method obs needs samples", "--data")),
        (("--max-drop", "1", "--recalibrate-bn"), 2, ("--recalibrate-bn, --max-drop need samples",)),
        (("--data", "DATA", "--samples", "DATA"), 2, ("--data and --samples",)),
        (("--samples", "photos"), 2, ("is no .npz or .npy",)),
        (("--data", "nonsense"), 2, ("unknown data 'nonsense'",)),
        (("--data", "DATA", "--method", "best", "--damping", "-1"), 2, ("unknown --method 'best'", "--damping -1")),
        (("--data", "DATA", "--held-out", "0", "--max-drop", "101"), 2, ("--held-out 0", "--max-drop 101")),
        (("--data", "DATA", "--exclude", "*"), 3, ("no weight can be pruned",)),
        (("--data", "DATA", "--exclude", "gone"), 2, ("no layer matches 'gone'",)),
        (("--data", "gone.npz"), 3, ("no such file",)),
        (("--data", "DATA", "--plot", "x.pdf"), 2, ("is no .png",)),
    ],
)
def test_wrong_options(net, npz, tmp_path, options, code, words):
    given = [str(npz) if option == "DATA" else option for option in options]
    result = nm2trt_inline("prune", net, "-o", tmp_path / "out.onnx", *given)
    assert_one_error_line(result, code, *words)
    assert left(tmp_path) == ["data.npz", "net.onnx"]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((1, 3, 8, 8), np.float32)}, "has 1 sample"),
        ({"x": np.zeros((0, 3, 8, 8), np.float32)}, "holds no sample"),
        ({"x": np.zeros((9, 3, 8, 7), np.float32)}, "[9, 3, 8, 7]"),
        ({"x": np.zeros((9, 3, 8, 8), np.float64)}, "float64"),
        ({"x": np.full((9, 3, 8, 8), np.nan, np.float32)}, "is NaN or infinite"),
    ],
)
def test_samples_that_cannot_be_used(net, tmp_path, arrays, words):
    np.savez(tmp_path / "data.npz", **arrays)
    result = nm2trt_inline("prune", net, "--data", tmp_path / "data.npz", "-o", tmp_path / "out.onnx")
    assert_one_error_line(result, 3, words)
    assert left(tmp_path) == ["data.npz", "net.onnx"]


def test_inputs_that_cannot_be_pruned_with_data(net, npz, tmp_path):
    quantized = tmp_path / "int8.onnx"
    assert nm2trt_inline("calibrate", net, "--builder", "none", "--data", npz, "-o", quantized).returncode == 0
    before = left(tmp_path)
    out = tmp_path / "out.onnx"
    result = nm2trt_inline("prune", quantized, "--data", npz, "-o", out)
    assert_one_error_line(result, 3, "is quantized", "prune the float network")
    from safetensors.numpy import save_file

    save_file({"fc.weight": np.ones((8, 8), np.float32)}, tmp_path / "a.safetensors")
    result = nm2trt_inline("prune", tmp_path / "a.safetensors", "--data", npz, "-o", tmp_path / "b.safetensors")
    assert_one_error_line(result, 2, "holds weights and no network", "--model")
    (tmp_path / "a.safetensors").unlink()
    (tmp_path / "out.prune.json").write_text("mine")
    assert_one_error_line(nm2trt_inline("prune", net, "--data", npz, "-o", out), 2, "out.prune.json", "--force")
    assert (tmp_path / "out.prune.json").read_text() == "mine"
    (tmp_path / "out.prune.json").unlink()
    assert left(tmp_path) == before


def test_zero_inputs_are_damped_and_said(net, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.zeros((9, 3, 8, 8), np.float32))
    result = nm2trt_inline("prune", net, "--data", tmp_path / "data.npz", "-o", tmp_path / "out.onnx")
    assert result.returncode == 0, result.stderr
    assert "(damped)" in result.stdout
    assert "is singular" in result.stdout
    assert nm2trt_inline("verify", tmp_path / "out.onnx").returncode == 0


def test_batch_norm_in_the_graph_is_recalibrated(tmp_path):
    rng = np.random.default_rng(0)
    nodes = [
        nets.node("Conv", "c", ["x", "w"], "a"),
        nets.node("BatchNormalization", "bn", ["a", "s", "b", "m", "v"], "d"),
        nets.node("Conv", "last", ["d", "w2"], "y"),
    ]
    weights = {"w": rng.standard_normal((8, 8, 1, 1)), "w2": rng.standard_normal((8, 8, 1, 1))}
    weights |= {"s": np.ones(8), "b": np.zeros(8), "m": np.zeros(8), "v": np.ones(8)}
    made = nets.model(
        nodes,
        [("x", nets.FLOAT, ["n", 8, 4, 4])],
        [("y", nets.FLOAT, ["n", 8, 4, 4])],
        {name: values.astype(np.float32) for name, values in weights.items()},
    )
    net = nets.saved(made, tmp_path / "net.onnx")
    np.savez(tmp_path / "d.npz", x=rng.standard_normal((30, 8, 4, 4)).astype(np.float32))
    result = nm2trt_inline("prune", net, "--data", tmp_path / "d.npz", "--recalibrate-bn", "-o", tmp_path / "o.onnx")
    assert "batch norm: 1 of 1 recalibrated" in result.stdout
    assert "outputs differ by" in result.stdout.splitlines()[-1]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "o.onnx").graph.initializer}
    assert not np.allclose(stored["v"], 1)


def test_fixed_batches_several_inputs_and_permutations(tmp_path):
    rng, out = np.random.default_rng(0), tmp_path / "o.onnx"
    fixed = nets.saved(nets.residual(batch=4), tmp_path / "fixed.onnx")
    data = tmp_path / "d.npz"
    np.savez(data, x=rng.standard_normal((30, 3, 8, 8)).astype(np.float32))
    options = ("--permute", "--permute-seconds", "0.1", "--pattern", "1:4", "--json")
    document = json.loads(nm2trt_inline("prune", fixed, "--data", data, *options, "-o", out).stdout)
    # Whole batches of four only.
    assert (document["verdict"], document["calibrated"]["samples"]) == ("pass", 24)
    assert document["calibrated"]["agreement"]["samples"] == 4
    assert document["permutation"]["outputs"] == "agree"
    found = document["permutation"]
    assert found["scores"] == "obs"
    assert 0 < found["kept_before"] <= found["kept_after"] <= 1
    shown = nm2trt_inline("prune", fixed, "--data", data, *options[:-1], "-o", out, "--force").stdout
    shares = f"{100 * found['kept_before']:.2f} -> {100 * found['kept_after']:.2f} % of the obs scores kept"
    assert shares in " ".join(shown.split())
    np.savez(data, x=rng.standard_normal((3, 3, 8, 8)).astype(np.float32))
    few = nm2trt_inline("prune", fixed, "--data", data, "-o", tmp_path / "few.onnx")
    assert_one_error_line(few, 3, "fewer than the network's fixed batch")
    two = nets.saved(nets.two_inputs(), tmp_path / "two.onnx")
    np.savez(data, ids=rng.integers(0, 11, (30, 6)), mask=np.ones((30, 6), np.float32))
    result = nm2trt_inline("prune", two, "--data", data, "--layer", "w=2:4", "-o", tmp_path / "two-o.onnx", "--json")
    (row,) = (row for row in json.loads(result.stdout)["layers"] if row["output"])
    assert (row["name"], 0 < row["output"]["error"] <= row["output"]["magnitude_error"]) == ("w", True)


def test_magnitude_without_data_loads_no_runtime(net, tmp_path):
    code = (
        "import sys; from nm2trt.cli.main import run; "
        f"code = run(['prune', {str(net)!r}, '-o', {str(tmp_path / 'o.onnx')!r}]); "
        "assert code == 0 and not {'torch', 'onnxruntime', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_as_a_process_of_its_own(net, npz, tmp_path):
    result = nm2trt("prune", net, "--data", npz, "-o", tmp_path / "o.onnx", "-q")
    assert (result.returncode, result.stderr) == (0, "")


def test_without_onnx_runtime_the_line_says_what_installs_it(net, npz, tmp_path, monkeypatch):
    import nm2trt.pipelines.prune_data as pipeline

    monkeypatch.setattr(pipeline, "missing_modules", lambda _: ("onnxruntime", "sklearn"))
    result = nm2trt_inline("prune", net, "--data", npz, "-o", tmp_path / "o.onnx")
    assert_one_error_line(result, 4, "onnxruntime is not installed", "pip install 'nm2trt[calibrate]'")
    assert left(tmp_path) == ["data.npz", "net.onnx"]
