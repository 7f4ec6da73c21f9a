"""`nm2trt export --precision int8`: one command from a run, or from an ONNX file and samples, to an INT8 build."""

import json

import int8_networks as nets
import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import assert_one_error_line, nm2trt_inline, requires
from onnx import numpy_helper
from run_folders import make_run, sparse_names

from nm2trt.artifacts import BuildDocument

RNG = np.random.default_rng(7)
FEW = ("--calibration-samples", "32", "--held-out", "100")


def export(*arguments, builder="none"):
    return nm2trt_inline("export", *arguments, "--precision", "int8", "--builder", builder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sparse"
    module = make_run(folder, "mlp")
    return folder, module


@pytest.fixture
def net(tmp_path):
    """Somebody else's float ONNX file with samples, which it answers right in floating point."""
    path = nets.saved(nets.residual(), tmp_path / "net.onnx")
    x = RNG.standard_normal((60, 3, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    labels = session.run(None, {"x": x})[0].argmax(axis=1)
    np.savez(tmp_path / "samples.npz", x=x, labels=labels)
    return path, tmp_path / "samples.npz"


def left(folder, *known):
    return sorted(path.name for path in folder.iterdir() if path not in known)


def test_a_run_is_calibrated_on_its_own_data(run, tmp_path):
    folder, module = run
    build = tmp_path / "int8"
    result = export(folder, "-o", build, *FEW)
    assert result.returncode == 0, result.stderr
    assert "calibrated on digits" in result.stdout
    document = BuildDocument.read(build)
    found = document.calibration
    assert (document.precision, document.source.kind, document.verdict) == ("int8+fp32", "run", "pass")
    assert found.samples == 32
    assert "32 training samples" in found.data
    assert found.file in document.files
    whole = json.loads((build / found.file).read_text())
    assert whole["output"]["sha256"] == document.files["model.onnx"].sha256
    assert document.numerics.passed
    assert document.numerics.reference.startswith("torch")
    assert document.facts.legal.state == "proved"
    # The pattern, counted here in the weights as they are stored.
    stored = {one.name: numpy_helper.to_array(one) for one in onnx.load(build / "model.onnx").graph.initializer}
    for name in sparse_names(module):
        groups = (stored[name] != 0).reshape(len(stored[name]), -1, 4).sum(axis=-1)
        assert groups.max() <= 2, name


def test_the_score_is_that_of_the_file_that_was_written(run, tmp_path):
    from nm2trt.data import load_data

    assert export(run[0], "-o", tmp_path / "int8", *FEW).returncode == 0
    found = BuildDocument.read(tmp_path / "int8").calibration.agreement
    x, labels = load_data("digits").test.fetch(list(range(100)), 0)
    options = onnxruntime.SessionOptions()
    # As written, without the CPU's own INT8 kernels.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        tmp_path / "int8" / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    right = (session.run(None, {session.get_inputs()[0].name: x.numpy()})[0].argmax(axis=1) == labels.numpy()).mean()
    assert (found.samples, found.score_after) == (100, pytest.approx(right))


def test_an_onnx_file_of_others_is_calibrated_on_given_samples(net, tmp_path):
    path, samples = net
    for number, option in enumerate((("--samples", samples), ("--data", samples))):
        result = export(path, *option, "-o", tmp_path / f"b{number}")
        assert result.returncode == 0, result.stderr
        document = BuildDocument.read(tmp_path / f"b{number}")
        assert (document.source.kind, document.source.name) == ("onnx", "net.onnx")
        assert document.calibration.agreement.score_before == 1
        assert document.calibration.data == "samples.npz: 48 samples, held out 12"


def test_a_missed_gate_is_exit_1_with_a_build_to_look_at(net, tmp_path):
    """Noise that any quantization changes: with one layer there is none to keep but all."""
    path, samples = net
    options = ("--method", "percentile:60", "--max-drop", "2")
    result = export(path, "--samples", samples, "-o", tmp_path / "b", *options)
    found = BuildDocument.read(tmp_path / "b").calibration
    drop = 100 * (found.agreement.score_before - found.agreement.score_after)
    assert found.kept_float or drop > 2
    assert (result.returncode == 0) == (drop <= 2) == (found.verdict == "pass")
    assert bool(found.problems) == ("--max-drop 2" in result.stderr)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, ("needs samples", "--samples F.npz or --data")),
        (("--data", "nowhere"), 2, ("unknown data",)),
        (("--samples", "no.npz"), 3, ("no such file",)),
        (("--samples", "SAMPLES", "--exclude", "*"), 2, ("no layer to quantize",)),
        (("--method", "kl", "--placement", "all"), 2, ("unknown method",)),
    ],
)
def test_a_calibration_that_cannot_be_done_leaves_nothing(net, tmp_path, arguments, code, words):
    path, samples = net
    given = [samples if one == "SAMPLES" else one for one in arguments]
    assert_one_error_line(export(path, "-o", tmp_path / "b", *given), code, *words)
    assert left(tmp_path, path, samples) == []


def test_samples_that_calibration_refuses_leave_nothing(net, tmp_path):
    path, samples = net
    x = np.full((40, 3, 8, 8), 0.5, np.float32)
    x[:, 0, 0, 0] = np.nan
    np.savez(samples, x=x)
    result = export(path, "--samples", samples, "-o", tmp_path / "deep" / "b")
    assert result.returncode in (1, 3), result.stderr
    assert_one_error_line(result, 3)
    assert left(tmp_path, path, samples) == []


def test_options_of_the_calibration_are_refused_without_it(net, tmp_path):
    path, _ = net
    result = nm2trt_inline("export", path, "-o", tmp_path / "b", "--max-drop", "1", "--calibration-samples", "4")
    assert_one_error_line(result, 2, "--max-drop is for --precision int8", "--calibration-samples is for")


@requires(rtx=True)
def test_engines_are_built_in_the_same_go_also_the_dense_one(net, tmp_path):
    path, samples = net
    dense = nets.saved(nets.residual(seed=3), tmp_path / "dense.onnx")
    model = onnx.load(dense)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.where(array == 0, 0.01, array).astype(array.dtype), tensor.name))
    onnx.save(model, dense)
    options = ("--samples", samples, "--dense", dense)
    result = export(path, *options, "-o", tmp_path / "b", builder="tensorrt-rtx")
    assert result.returncode == 0, result.stderr
    document = BuildDocument.read(tmp_path / "b")
    assert [(one.variant, one.error) for one in document.engines] == [
        ("dense", None),
        ("control", None),
        ("sparse", None),
    ]
    ops = {node.op_type for node in onnx.load(tmp_path / "b" / "dense.onnx").graph.node}
    assert "QuantizeLinear" in ops
