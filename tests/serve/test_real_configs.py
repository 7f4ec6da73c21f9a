"""Configurations of every kind, read by a real tritonserver; one server for all of them."""

import json
import os

import numpy as np
import onnxruntime
import pytest
from helpers import nm2trt, nm2trt_inline
from onnx import TensorProto, helper
from serve_builds import TRITON, make_build, needs_client, needs_triton
from test_port_rules import build_of, detections, gather, per_sample
from test_real_server import Serving

from nm2trt.serve import roll_back

pytestmark = [needs_triton, needs_client]

WEIRD = 'in "a"\\ü, b:0/c d'


def weird(folder):
    return build_of(
        folder,
        [helper.make_node("Relu", [WEIRD], ["y out"])],
        [(WEIRD, TensorProto.FLOAT, ["N", 4])],
        [("y out", TensorProto.FLOAT, ["N", 4])],
    )


BUILDS = {
    "plain": lambda folder: make_build(folder),
    "one-number": per_sample,
    "tokens": lambda folder: gather(folder, 7),
    "one-row": lambda folder: gather(folder, 1),
    "offset": lambda folder: gather(folder, 4, offset=3),
    "int32": lambda folder: gather(folder, 3, dtype=TensorProto.INT32),
    "weird": weird,
    "any-length": lambda folder: gather(folder, 5, length="T"),
    "found": lambda folder: detections(folder, "N"),
    "fixed": lambda folder: make_build(folder, fixed_batch=2),
}
OPTIONS = {"found": ("--max-batch", "0"), "tokens": ("--instances", "2", "--queue-delay-us", "0")}


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("builds")
    return {name: make(folder / name) for name, make in BUILDS.items()}


def packaged(repository, builds, *options):
    for name, build in builds.items():
        result = nm2trt_inline("package", build, "-o", repository, "--name", name, *options, *OPTIONS.get(name, ()))
        assert result.returncode == 0, result.stderr
    return repository


@pytest.fixture(scope="module")
def environment():
    return {**os.environ, "NM2TRT_TRITON": str(TRITON)}


@pytest.fixture(scope="module")
def serving(builds, environment, tmp_path_factory):
    repository = packaged(tmp_path_factory.mktemp("cpu") / "repository", builds, "--server", "triton-cpu")
    one = Serving(repository, environment, "--poll", "1", folder=tmp_path_factory.mktemp("log"))
    one.repository = repository
    yield one
    one.stop()


@pytest.mark.parametrize("name", sorted(BUILDS))
def test_every_kind_is_ready_and_right(serving, builds, environment, name):
    """Ready means that the warm-up of every batch size ran."""
    result = nm2trt(
        "check-server",
        serving.http,
        name,
        "--build",
        builds[name],
        "--grpc",
        serving.grpc,
        "--no-load",
        env=environment,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_client_sees_one_number_per_sample_as_a_column(serving, builds):
    import tritonclient.http as client

    server = client.InferenceServerClient(serving.http.removeprefix("http://"))
    x, length = np.ones((3, 4), np.float32), np.array([[1], [2], [3]], np.int64)
    inputs = [client.InferInput("x", [3, 4], "FP32"), client.InferInput("length", [3, 1], "INT64")]
    for one, value in zip(inputs, (x, length), strict=True):
        one.set_data_from_numpy(value)
    answer = server.infer("one-number", inputs)
    session = onnxruntime.InferenceSession(str(builds["one-number"] / "model.onnx"), providers=["CPUExecutionProvider"])
    expected = session.run(["score", "echo"], {"x": x, "length": length[:, 0]})
    for name, value in zip(("score", "echo"), expected, strict=True):
        np.testing.assert_array_equal(answer.as_numpy(name), value[:, None])


def test_configurations_for_a_gpu_are_read_too(builds, environment, tmp_path):
    """Our Python model stands in for ONNX Runtime's backend: this shows the configuration, and nothing of an engine."""
    repository = packaged(tmp_path / "repository", builds, "--platform", "onnxruntime")
    packaged(repository, {"plain": builds["plain"]}, "--platform", "onnxruntime")
    roll_back(repository, "plain")
    one = Serving(repository, environment, "--stand-in", folder=tmp_path)
    try:
        for name in sorted(BUILDS):
            result = nm2trt(
                "check-server",
                one.http,
                name,
                "--build",
                builds[name],
                "--grpc",
                one.grpc,
                "--no-load",
                env=environment,
            )
            assert result.returncode == 0, result.stdout + result.stderr
    finally:
        one.stop()


def test_a_rollback_reaches_a_running_server(serving, builds, tmp_path):
    import time
    import urllib.request

    def versions():
        with urllib.request.urlopen(f"{serving.http}/v2/models/plain") as answer:
            return json.load(answer)["versions"]

    packaged(serving.repository, {"plain": make_build(tmp_path / "new", seed=5)}, "--server", "triton-cpu")
    for wanted, change in ((["1", "2"], lambda: None), (["1"], lambda: roll_back(serving.repository, "plain"))):
        change()
        for _ in range(100):
            if versions() == wanted:
                break
            time.sleep(0.2)
        assert versions() == wanted
