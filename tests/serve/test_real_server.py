"""A real tritonserver on loopback. What a stand-in shows is layout, configuration and protocol, never an engine."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from helpers import REPOSITORY, assert_one_error_line, nm2trt, nm2trt_inline
from run_folders import make_run
from serve_builds import TRITON, make_build, needs_client, needs_triton, token_network, write_build

from nm2trt.errors import InputError
from nm2trt.serve import PackageRequest, check_repository, package_triton
from nm2trt.serve.installed import find_triton
from nm2trt.serve.server import choose_ports, start

pytestmark = [needs_triton, needs_client]

READY_S = 60


@pytest.fixture(scope="module")
def environment():
    return {**os.environ, "NM2TRT_TRITON": str(TRITON)}


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """The demo's network, sparse and dense, exported."""
    folder = tmp_path_factory.mktemp("builds")
    for name, sparse in (("sparse", True), ("dense", False)):
        make_run(folder / f"run-{name}", "resnet8", sparse=sparse, seed=3 + sparse)
        options = ("--precision", "fp16", "--builder", "none")
        result = nm2trt_inline("export", folder / f"run-{name}", "-o", folder / name, *options)
        assert result.returncode == 0, result.stderr
    return folder


def right_answers(build, x):
    session = onnxruntime.InferenceSession(str(build / "model.onnx"), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


class Serving:
    """`nm2trt serve` in a process of its own."""

    def __init__(self, repository, environment, *options, folder):
        self.stderr = folder / "stderr.txt"
        with self.stderr.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nm2trt", "serve", str(repository), "--json", *options]
                + [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
        text = ""
        for line in self.process.stdout:
            text += line.decode()
            if line == b"}\n":
                break
        assert text, self.stderr.read_text()
        self.document = json.loads(text)
        self.http, self.grpc = self.document["http"], self.document["grpc"]

    def stop(self):
        self.process.terminate()
        self.process.communicate(timeout=READY_S)
        return self.process.returncode


@pytest.fixture(scope="module")
def repository(builds, tmp_path_factory):
    repository = tmp_path_factory.mktemp("served") / "repository"
    result = nm2trt_inline(
        "package",
        builds / "sparse",
        "--dense",
        builds / "dense",
        "--server",
        "triton-cpu",
        "-o",
        repository,
        "--name",
        "net",
    )
    assert result.returncode == 0, result.stderr
    return repository


@pytest.fixture(scope="module")
def serving(repository, environment, tmp_path_factory):
    one = Serving(repository, environment, "--poll", "1", folder=tmp_path_factory.mktemp("log"))
    yield one
    with contextlib.suppress(ProcessLookupError):
        one.stop()


def request(module, x):
    tensor = module.InferInput("input", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    return [tensor]


def test_the_demo_network_over_http_and_grpc(serving, builds, tmp_path):
    report = tmp_path / "report"
    result = nm2trt_inline(
        "check-server", serving.http, "net", "--build", builds / "sparse", "--grpc", serving.grpc, "--json",
        "--duration", "0.2", "--max-concurrency", "4", "-o", report,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["verdict"] == "pass"
    assert [one["protocol"] for one in document["outputs"]] == ["http", "grpc"]
    for one in document["outputs"]:
        assert one["inputs"] == "first 64 test samples of digits"
        # The server joins samples into other batches than ours; ONNX Runtime may round the last bit otherwise.
        assert one["max_rel_error"] < 1e-3
    for one in document["load"]:
        assert one["requests"] > 0
        assert one["errors"] == one["wrong"] == 0
        assert one["p50_ms"] <= one["p90_ms"] <= one["p99_ms"]
    assert json.loads((report / "server.json").read_text()) == document
    assert "Server check: net" in (report / "server.html").read_text()


def test_another_network_is_found_out(serving, builds):
    result = nm2trt_inline(
        "check-server", serving.http, "net-dense", "--build", builds / "sparse", "--grpc", serving.grpc
    )
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("nm2trt: error: ")]
    assert len(lines) == 1
    assert "outputs differ from ONNX Runtime's" in lines[0]
    assert "no load was measured" in result.stdout


def test_a_model_that_is_not_there(serving, builds):
    result = nm2trt_inline(
        "check-server", serving.http, "nothing", "--build", builds / "sparse", "--grpc", serving.grpc
    )
    assert_one_error_line(result, 3, "model 'nothing' is not there or not ready")


def test_the_example_splits_its_traffic(serving):
    result = subprocess.run(
        [sys.executable, REPOSITORY / "examples/client.py", serving.http, "net", "--against", "net-dense",
         "--share", "0.25", "--requests", "80"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = dict(re.findall(r"^(\S+): (\d+) requests, [\d.]+ % right", result.stdout, re.MULTILINE))
    assert set(found) == {"net", "net-dense"}
    assert int(found["net"]) + int(found["net-dense"]) == 80
    assert int(found["net-dense"]) < int(found["net"])


def test_200_concurrent_requests_lose_nothing(serving, builds):
    import tritonclient.grpc
    import tritonclient.http

    x_NCHW = np.random.default_rng(0).standard_normal((200, 1, 8, 8)).astype(np.float32)
    expected = right_answers(builds / "sparse", x_NCHW)
    with tritonclient.http.InferenceServerClient(serving.http.removeprefix("http://"), concurrency=200) as client:
        waiting = [client.async_infer("net", request(tritonclient.http, x[None])) for x in x_NCHW]
        found = [one.get_result().as_numpy("logits") for one in waiting]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-3, atol=1e-3)

    answers, done = {}, threading.Semaphore(0)

    def keep(at, result, error):
        answers[at] = error or result.as_numpy("logits")[0]
        done.release()

    with tritonclient.grpc.InferenceServerClient(serving.grpc) as client:
        for at, x in enumerate(x_NCHW):
            client.async_infer(
                "net",
                request(tritonclient.grpc, x[None]),
                lambda result, error, at=at: keep(at, result, error),
            )
        assert all(done.acquire(timeout=READY_S) for _ in x_NCHW)
        statistics = client.get_inference_statistics("net", as_json=True)["model_stats"][0]
    np.testing.assert_allclose(np.stack([answers[at] for at in range(200)]), expected, rtol=1e-3, atol=1e-3)
    assert int(statistics["execution_count"]) < int(statistics["inference_count"]), "requests were never batched"


def test_a_new_version_is_taken_up_and_the_old_one_still_answers(serving, repository, builds):
    import tritonclient.http

    x = np.random.default_rng(1).standard_normal((2, 1, 8, 8)).astype(np.float32)
    with tritonclient.http.InferenceServerClient(serving.http.removeprefix("http://")) as client:
        assert not client.is_model_ready("net", "2")
        result = nm2trt_inline(
            "package", builds / "sparse", "--server", "triton-cpu", "-o", repository, "--name", "net"
        )
        assert result.returncode == 0, result.stderr
        assert "beside version 1" in result.stdout
        deadline = time.monotonic() + READY_S
        while not client.is_model_ready("net", "2") and time.monotonic() < deadline:
            assert client.is_model_ready("net", "1")
            time.sleep(0.1)
        for version in ("1", "2", ""):
            answer = client.infer("net", request(tritonclient.http, x), model_version=version).as_numpy("logits")
            np.testing.assert_allclose(answer, right_answers(builds / "sparse", x), rtol=1e-3, atol=1e-3)


def test_a_killed_server_comes_back_and_never_answers_wrongly(serving, builds):
    import tritonclient.http

    x_NCHW = np.random.default_rng(2).standard_normal((16, 1, 8, 8)).astype(np.float32)
    expected = right_answers(builds / "sparse", x_NCHW)
    killed, seen = threading.Event(), {"before": 0, "errors": 0, "after": 0}
    lock = threading.Lock()

    def client(number):
        address = serving.http.removeprefix("http://")
        deadline = time.monotonic() + READY_S
        for at in range(number, 100_000):
            if time.monotonic() > deadline or seen["after"] > 50:
                return
            try:
                with tritonclient.http.InferenceServerClient(address, network_timeout=5.0) as one:
                    answer = one.infer("net", request(tritonclient.http, x_NCHW[at % 16][None])).as_numpy("logits")
            except Exception:  # noqa: BLE001 -- refused, reset, timed out: all are errors that a client sees
                with lock:
                    seen["errors"] += 1
                time.sleep(0.05)
                continue
            np.testing.assert_allclose(answer[0], expected[at % 16], rtol=1e-3, atol=1e-3)
            with lock:
                # After an error that the kill caused, an answer can only come from the new server.
                seen["after" if killed.is_set() and seen["errors"] else "before"] += 1

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, number) for number in range(8)]
        while seen["before"] < 50:
            time.sleep(0.02)
        assert seen["errors"] == 0
        os.kill(serving.document["pid"], signal.SIGKILL)
        killed.set()
        for one in clients:
            one.result()
    assert seen["errors"] > 0
    assert seen["after"] > 50
    assert "was killed by SIGKILL; starting it again (1 of 3)" in serving.stderr.read_text()


def test_it_stops_in_order(serving):
    """Last of this module's tests on `serving`: SIGTERM ends server and backend processes."""
    group = subprocess.run(["pgrep", "-P", str(serving.process.pid)], capture_output=True, text=True, check=False)
    assert serving.stop() == 0
    for pid in group.stdout.split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@contextlib.contextmanager
def started(repository, **options):
    with start(find_triton({"NM2TRT_TRITON": str(TRITON)}), repository, choose_ports(0, 0, 0), **options) as server:
        yield server


@pytest.fixture(scope="module")
def plan_repository(tmp_path_factory):
    """A plan's configuration with all that it can have; the plan's bytes are made up."""
    folder = tmp_path_factory.mktemp("plans")
    builds = tuple(make_build(folder / sm, builder="tensorrt", sm=sm) for sm in ("80", "90"))
    package_triton(PackageRequest(builds=builds, repository=folder / "repository", name="plan", instances=2))
    return folder


def test_a_plans_repository_is_accepted_up_to_the_missing_backend(plan_repository):
    repository = plan_repository / "repository"
    with started(repository, needed=frozenset()) as server, pytest.raises(InputError) as caught:
        server.wait_until_ready(READY_S)
    assert "unable to find backend library for backend 'tensorrt'" in str(caught.value)


def test_a_broken_config_is_another_message(plan_repository, tmp_path):
    """Without this, the test above would not show that the configuration was read."""
    folder = tmp_path / "repository" / "plan"
    folder.mkdir(parents=True)
    text = (plan_repository / "repository/plan/config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(text.replace("max_batch_size", "max_batch_sise"))
    with started(tmp_path / "repository", needed=frozenset()) as server, pytest.raises(InputError) as caught:
        server.wait_until_ready(READY_S)
    assert "failed to read text proto" in str(caught.value)


def test_serve_names_the_missing_backend_before_it_starts(plan_repository, environment):
    result = nm2trt(
        "serve",
        plan_repository / "repository",
        "--http-port",
        "0",
        "--grpc-port",
        "0",
        "--metrics-port",
        "0",
        env=environment,
    )
    assert_one_error_line(result, 4, "has no tensorrt backend", "--stand-in")


@pytest.mark.parametrize(
    ("option", "words"), [(("--stand-in",), "--stand-in: no effect: python"), (("--timeout", "nan"), "nan is no time")]
)
def test_what_changes_nothing_is_refused(tmp_path, environment, option, words):
    build = make_build(tmp_path / "build")
    assert (
        nm2trt_inline("package", build, "--server", "triton-cpu", "-o", tmp_path / "r", "--name", "net").returncode == 0
    )
    assert_one_error_line(nm2trt("serve", tmp_path / "r", *option, env=environment), 2, words)


def test_stand_ins_serve_both_gpu_configurations(plan_repository, environment, tmp_path):
    """Proves that layout, names, types, batching and warm-up are in order; the ONNX runs, never the plan."""
    build, repository = plan_repository / "80", plan_repository / "repository"
    package_triton(
        PackageRequest(builds=(build,), repository=repository, name="ort", platform="onnxruntime", device="gpu")
    )
    assert check_repository(repository) == {"ort": ("onnxruntime", [1]), "plan": ("tensorrt", [1])}
    serving = Serving(repository, environment, "--stand-in", folder=tmp_path)
    try:
        assert "stand-in for onnxruntime, tensorrt" in serving.stderr.read_text()
        for model in ("plan", "ort"):
            result = nm2trt_inline(
                "check-server", serving.http, model, "--build", build, "--grpc", serving.grpc, "--no-load", "--json"
            )
            assert result.returncode == 0, result.stderr
            assert json.loads(result.stdout)["metadata"][0]["differences"] == []
    finally:
        assert serving.stop() == 0


def test_any_path_and_a_proxy_in_the_environment(builds, environment, tmp_path):
    """The Python backend splits its command line at spaces, and loopback must not be asked through a proxy."""
    repository = tmp_path / "a b" / "übung"
    result = nm2trt_inline("package", builds / "sparse", "--server", "triton-cpu", "-o", repository, "--name", "net")
    assert result.returncode == 0, result.stderr
    proxied = {**environment, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    proxied = {name: value for name, value in proxied.items() if name.lower() != "no_proxy"}
    serving = Serving(repository, proxied, folder=tmp_path)
    try:
        result = nm2trt(
            "check-server", serving.http, "net", "--build", builds / "sparse", "--grpc", serving.grpc, "--no-load",
            env=proxied,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert "not a bit differs" in result.stdout
    finally:
        assert serving.stop() == 0


def children(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(one) for one in found.stdout.split()]


def test_a_dead_python_process_is_replaced(builds, repository, environment, tmp_path):
    """Triton itself goes on, says that the model is ready, and fails every request."""
    serving = Serving(repository, environment, "--restarts", "1", folder=tmp_path)
    try:
        stub = children(serving.document["pid"])[0]
        os.kill(stub, signal.SIGKILL)
        deadline = time.monotonic() + READY_S
        while "ready again" not in serving.stderr.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        result = nm2trt_inline(
            "check-server", serving.http, "net", "--build", builds / "sparse", "--grpc", serving.grpc, "--no-load"
        )
        assert result.returncode == 0, result.stderr
        assert "lost a process of its Python backend" in serving.stderr.read_text()
    finally:
        assert serving.stop() == 0


def test_an_old_log_is_not_this_servers(repository, environment, tmp_path):
    log = tmp_path / "log"
    log.write_text("E failed to load 'other' version 1: Internal: of yesterday\n")
    serving = Serving(repository, environment, "--restarts", "0", "--log", str(log), folder=tmp_path)
    os.kill(serving.document["pid"], signal.SIGKILL)
    assert serving.process.wait(READY_S) == 4
    said = serving.stderr.read_text()
    assert "tritonserver was killed by SIGKILL" in said
    assert "other" not in said
    assert log.read_text().startswith("E failed to load 'other'")


def test_one_clients_mistake_fails_no_other_client(environment, tmp_path):
    import tritonclient.grpc

    build = write_build(tmp_path / "build", token_network())
    package_triton(PackageRequest(builds=(build,), repository=tmp_path / "repo", name="net", server="triton-cpu"))
    config = tmp_path / "repo/net/config.pbtxt"
    # So long a delay that right and wrong requests meet in one batch; a warm-up of any ids is another test's matter.
    text = re.sub(r"(?s)\nmodel_warmup \{.*?\n\}", "", config.read_text())
    config.write_text(re.sub(r"max_queue_delay_microseconds: \d+", "max_queue_delay_microseconds: 200000", text))
    (tmp_path / "repo/net/package.json").unlink()
    serving = Serving(tmp_path / "repo", environment, folder=tmp_path)

    def ask(number):
        tensor = tritonclient.grpc.InferInput("ids", [1, 6], "INT64")
        tensor.set_data_from_numpy(np.full((1, 6), 9999 if number == 3 else number, np.int64))
        with tritonclient.grpc.InferenceServerClient(serving.grpc) as client:
            try:
                return client.infer("net", [tensor]).as_numpy("a")
            except tritonclient.grpc.InferenceServerException as error:
                return str(error)

    try:
        session = onnxruntime.InferenceSession(str(build / "model.onnx"), providers=["CPUExecutionProvider"])
        for _ in range(5):
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(ask, range(8)))
            assert "out of data bounds" in answers[3]
            for number in (0, 1, 2, 4, 5, 6, 7):
                (right,) = session.run(["a"], {"ids": np.full((1, 6), number)})
                np.testing.assert_allclose(answers[number], right, rtol=1e-5)
        with tritonclient.grpc.InferenceServerClient(serving.grpc) as client:
            statistics = client.get_inference_statistics("net", as_json=True)["model_stats"][0]
        assert int(statistics["execution_count"]) < 40, "requests were never batched"
    finally:
        assert serving.stop() == 0


def test_a_model_that_does_not_load_says_why(tmp_path, environment):
    build = make_build(tmp_path / "build")
    package_triton(PackageRequest(builds=(build,), repository=tmp_path / "repo", name="net", server="triton-cpu"))
    code = tmp_path / "repo/net/1/model.py"
    code.write_text("import nothing_of_this_name\n")
    (tmp_path / "repo/net/package.json").unlink()
    options = [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")]
    result = nm2trt("serve", tmp_path / "repo", *options, env=environment)
    assert_one_error_line(result, 3, "failed to load 'net'", "nothing_of_this_name")
