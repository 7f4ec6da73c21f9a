"""trtexec's files of every version: what is timed, what it covers, what is refused."""

import json

import numpy as np
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.errors import InputError
from nm2trt.evidence.layer_table import read_layer_table
from nm2trt.evidence.trtexec import read_trtexec


def times(compute_ms, *, h2d_ms=0.0, old=False, enqueue_ms=0.1):
    into, out = ("inMs", "outMs") if old else ("h2dMs", "d2hMs")
    return [
        {"startEnqMs": 10.0 * i, "endEnqMs": 10.0 * i + enqueue_ms, "startComputeMs": 1.0, "endComputeMs": 1.0 + one,
         into: h2d_ms, "computeMs": one, out: h2d_ms / 2, "latencyMs": one + 1.5 * h2d_ms}
        for i, one in enumerate(compute_ms)
    ]  # fmt: skip


def log(version, **options):
    lines = [f"&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # trtexec --onnx=net.onnx"]
    lines += [f"[04/07/2025-23:59:33] [I] {key.replace('_', ' ')}: {value}" for key, value in options.items()]
    return "\n".join(lines) + "\n"


def put(folder, prefix="run", **files):
    for suffix, content in files.items():
        name = folder / f"{prefix}.{suffix}{'.log' if suffix == 'out' else '.json'}"
        name.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / prefix


@pytest.mark.parametrize("old", [False, True])
def test_times_of_old_and_new_versions(tmp_path, old):
    run = read_trtexec(put(tmp_path, t=times([1.0, 1.1, 1.2], h2d_ms=0.4, old=old)))
    np.testing.assert_allclose(run.compute_ms, [1.0, 1.1, 1.2])
    np.testing.assert_allclose(run.latency_ms, np.array([1.0, 1.1, 1.2]) + 0.6)
    np.testing.assert_allclose(run.enqueue_ms, 0.1)
    assert run.toggles.transfers is True
    assert (run.toggles.graph, run.toggles_source) == (None, "the times themselves")


@pytest.mark.parametrize(
    ("version", "name", "transfers", "graph"),
    [("8503", "8.5.3", True, False), ("8601", "8.6.1", True, False), ("100900", "10.9.0", True, False),
     ("101601", "10.16.1", True, False), ("110106", "11.1.6", False, True)],
)  # fmt: skip
def test_defaults_follow_the_version(tmp_path, version, name, transfers, graph):
    run = read_trtexec(put(tmp_path, t=times([1.0]), out=log(version)))
    assert run.version == name
    assert (run.toggles.transfers, run.toggles.graph, run.toggles.spin) == (transfers, graph, graph)
    assert "its command line and the defaults of trtexec" in run.toggles_source


def test_the_log_beats_the_defaults(tmp_path):
    options = {"Data_transfers": "Disabled", "CUDA_Graph": "Enabled", "Spin-wait": "Enabled", "Precision": "FP32+FP16",
               "Selected_Device": "NVIDIA A100 80GB PCIe", "SMs": "108",
               "Input_inference_shape": "x=32x3x224x224"}  # fmt: skip
    run = read_trtexec(put(tmp_path, t=times([1.0]), out=log("8503", **options)))
    assert run.toggles.words() == "data transfers off, CUDA graph on, spin wait on"
    assert (run.gpu, run.multiprocessors, run.precision, run.batch) == ("NVIDIA A100 80GB PCIe", 108, "FP32+FP16", 32)


def test_profile_and_layers(tmp_path):
    profile = [{"count": 7}, {"name": "a", "timeMs": 7.0, "averageMs": 1.0, "percentage": 100.0}]
    layers = {
        "Layers": [{"Name": "a", "LayerType": "CaskConvolution", "Inputs": [{"Name": "x", "Dimensions": [4, 3]}]}]
    }
    run = read_trtexec(put(tmp_path, p=profile, l=layers))
    assert (run.iterations, run.layers[0].average_ms, run.layers[0].median_ms, run.batch) == (7, 1.0, None, 4)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no file of trtexec there"),
        ({"x": {"other": 1}}, "none of these files is trtexec's"),
        ({"x": "{"}, "is cut off at line 1"),
        ({"x": [{"computeMs": "fast"}]}, "entry 0: computeMs is 'fast'"),
        ({"x": [{"computeMs": -1}]}, "no time"),
        ({"x": [{"computeMs": 1.0}], "y": [{"computeMs": 2.0}]}, "second file of times"),
        ({"x": [{"name": "a", "averageMs": 1}], "y": [{"name": "a", "averageMs": 2}]}, "second profile"),
        ({"x": [{"count": 1}, {"name": "a"}]}, "entry 1 of the profile"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, files, message):
    prefix = put(tmp_path, **files)
    with pytest.raises(InputError, match=message):
        read_trtexec(prefix)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["computeMs", "count", "name", "averageMs", "Layers", "Name", "h2dMs", "inference_options",
                         "build_options", "median", "SMs", "device_information"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@examples(150)
@given(json_values, st.text(max_size=80))
def test_whatever_stands_in_a_file_only_a_plain_refusal_comes_out(tmp_path_factory, value, text):
    folder = tmp_path_factory.mktemp("noise")
    (folder / "a.json").write_text(json.dumps(value))
    (folder / "b.log").write_text(text, encoding="utf-8")
    try:
        read_trtexec(folder)
    except InputError as error:
        assert "\n" not in str(error)


def test_recorded_runs(reference_data):
    run = read_trtexec(reference_data / "a100-resnet18" / "fp16")
    assert (run.gpu, run.multiprocessors, run.batch) == ("NVIDIA A100 80GB PCIe", 108, 32)
    assert run.toggles.words() == "data transfers off, CUDA graph on, spin wait on"
    assert run.summary.median_ms == pytest.approx(0.862, abs=1e-3)
    assert sum(layer.average_ms for layer in run.layers) == pytest.approx(1.017, abs=1e-3)


def test_layer_tables(tmp_path, reference_data):
    rows = read_layer_table(reference_data / "a100-unet" / "fp16.csv")
    assert (len(rows), sum(row.chosen for row in rows)) == (47, 36)
    assert rows[0].flops(32) == 2 * 32 * 128 * 128 * 64 * 3 * 49


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer,dense_engine_ms\na,1\n", "no column sparse_engine_ms"),
        ("layer,dense_engine_ms,sparse_engine_ms\n", "no layer"),
        ("layer,dense_engine_ms,sparse_engine_ms\na,1,fast\n", "line 2: sparse_engine_ms is 'fast'"),
        ("layer,dense_engine_ms,sparse_engine_ms,sparse_kernel_chosen\na,1,1,yes\n", "'yes', not 0 or 1"),
        ("layer,dense_engine_ms,sparse_engine_ms,c_in\na,1,1,-4\n", "line 2: c_in is '-4'"),
        ("\0", "no"),
    ],
)
def test_bad_tables_are_named(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_layer_table(path)
