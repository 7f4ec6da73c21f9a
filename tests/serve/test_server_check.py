"""The check's arithmetic; a real server is asked in test_real_server.py."""

import threading
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from serve_builds import make_build

from nm2trt.artifacts import BuildDocument
from nm2trt.artifacts.server_report import LoadRecord
from nm2trt.errors import ConfigError, InputError
from nm2trt.report.server_load import load_svg
from nm2trt.serve.check import _port_differences
from nm2trt.serve.client import RequestFailed, addresses
from nm2trt.serve.load import levels, run_level, saturation, until_saturated
from nm2trt.serve.samples import Samples, build_samples, largest_error


def record(concurrency, throughput, *, errors=0, cpu=0.2):
    return LoadRecord(
        protocol="http",
        concurrency=concurrency,
        seconds=1.0,
        requests=int(throughput),
        errors=errors,
        wrong=0,
        first_error="reset" if errors else "",
        throughput_per_s=throughput,
        p50_ms=1.0,
        p90_ms=2.0,
        p99_ms=3.0,
        client_cpu_share=cpu,
    )


def run_over(*throughputs, errors_at=None):
    """Levels 1, 2, 4 ... with these throughputs."""
    return list(
        until_saturated(
            lambda concurrency: record(
                concurrency, throughputs[concurrency.bit_length() - 1], errors=int(concurrency == errors_at)
            ),
            [1 << at for at in range(len(throughputs))],
        )
    )


def test_levels():
    assert levels(1) == [1]
    assert levels(8) == [1, 2, 4, 8]
    assert levels(12) == [1, 2, 4, 8, 12]


def test_load_ends_after_two_levels_without_gain():
    records = run_over(100, 190, 300, 301, 305, 900)
    assert [one.concurrency for one in records] == [1, 2, 4, 8, 16]
    end = saturation(records)
    assert (end.saturated, end.concurrency, end.throughput_per_s) == (True, 4, 300)
    assert "more clients brought no more" in end.sentence


def test_one_slow_level_is_not_the_end():
    assert [one.concurrency for one in run_over(100, 90, 300, 600)] == [1, 2, 4, 8]
    end = saturation(run_over(100, 90, 300, 600))
    assert (end.saturated, end.concurrency) == (False, 8)
    assert "still growing" in end.sentence


def test_a_failure_ends_the_load():
    records = run_over(100, 200, 400, errors_at=2)
    assert [one.concurrency for one in records] == [1, 2]
    assert "stopped at concurrency 2, where requests failed" in saturation(records).sentence


def test_clients_that_are_the_limit_are_named():
    assert "may be the limit" in saturation([record(1, 100, cpu=0.95)]).sentence
    assert "may be the limit" not in saturation([record(1, 100, cpu=0.5)]).sentence


VALUES = hnp.arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32))


@given(right=VALUES, wrong=VALUES)
def test_the_largest_error_is_the_loops(right, wrong):
    absolute = max(abs(float(a) - float(b)) for a, b in zip(right.ravel(), wrong.ravel(), strict=True))
    scale = max(abs(float(a)) for a in right.ravel()) or 1.0
    found_abs, found_rel, _ = largest_error({"y": right}, {"y": wrong})
    assert found_abs == pytest.approx(absolute)
    assert found_rel == pytest.approx(absolute / scale)


def test_what_no_number_can_say():
    right = {"y": np.array([[1.0, np.nan], [np.inf, 2.0]], np.float32)}
    assert largest_error(right, {"y": right["y"].copy()})[1] == 0.0
    assert largest_error(right, {"y": np.nan_to_num(right["y"])})[1] == np.inf
    assert largest_error(right, {})[1:] == (np.inf, "y: nothing instead of shape [2, 2]")
    assert largest_error(right, {"y": right["y"][:1]})[1] == np.inf
    integers = {"y": np.array([1, 5])}
    assert largest_error(integers, {"y": np.array([1, 4])})[:2] == (1.0, 0.2)


def square_samples(count=8):
    x = np.arange(count, dtype=np.float32)[:, None]
    return Samples(batched=True, inputs={"x": x}, outputs={"y": x * x}, words="numbers")


class Squares:
    """A server in this process; `fault` may spoil an answer."""

    def __init__(self, fault=None):
        self.fault, self.asked, self.lock = fault, 0, threading.Lock()

    def infer(self, feed):
        with self.lock:
            self.asked += 1
            asked = self.asked
        if self.fault == "errors" and asked % 3 == 0:
            raise RequestFailed("reset by peer")
        wrong = self.fault == "wrong" and asked % 3 == 0
        return {"y": feed["x"] ** 2 + wrong}


@pytest.mark.parametrize("fault", [None, "errors", "wrong"])
def test_every_request_is_counted_once(fault):
    server = Squares(fault)

    @contextmanager
    def connect():
        yield server

    found = run_level("grpc", connect, square_samples(), concurrency=4, duration_s=0.2, tolerance=1e-6)
    assert found.requests + found.errors + found.wrong == server.asked > 0
    assert (found.errors > 0, found.wrong > 0) == (fault == "errors", fault == "wrong")
    expected = {"errors": "reset by peer", "wrong": "wrong answer, y[0,0]", None: ""}[fault]
    assert found.first_error.startswith(expected)
    assert (found.first_error == "") is (fault is None)
    assert found.throughput_per_s == pytest.approx(found.requests / found.seconds)


def test_requests_wrap_around():
    feed, expected = square_samples(3).request(2, 2)
    assert feed["x"].tolist() == [[2.0], [0.0]]
    assert expected["y"].tolist() == [[4.0], [0.0]]


def test_samples_of_a_build(tmp_path):
    for name, fixed in (("dynamic", None), ("fixed", 4)):
        folder = make_build(tmp_path / name, fixed_batch=fixed)
        build = BuildDocument.read(folder)
        samples = build_samples(build, folder / "model.onnx", count=5)
        feed, expected = samples.request(0, 2)
        assert len(samples) == 5
        assert feed["x"].shape == ((2, 4, 6, 6) if fixed is None else (4, 4, 6, 6))
        assert expected["y"].shape[0] == len(feed["x"])
    (folder / "model.onnx").write_bytes(b"broken")
    with pytest.raises(InputError, match="ONNX Runtime cannot run it"):
        build_samples(build, folder / "model.onnx", count=5)


def test_descriptions_that_differ(tmp_path):
    build = BuildDocument.read(make_build(tmp_path / "build"))
    right = {"name": "x", "datatype": "FP32", "shape": ["-1", "4", "6", "6"]}
    assert _port_differences("input", build.inputs, [right]) == []
    assert _port_differences("input", build.inputs, []) == ["input 'x' is not served"]
    (text,) = _port_differences("input", build.inputs, [{**right, "datatype": "FP16"}])
    assert text == "input 'x' is FP16, not FP32"
    (text,) = _port_differences("input", build.inputs, [{**right, "shape": [-1, 4, 6, 7]}])
    assert text == "input 'x' has shape [-1, 4, 6, 7], not [-1, 4, 6, 6]"
    assert "is served, and the build has none" in _port_differences("input", (), [right])[0]


def test_addresses():
    assert addresses("http://127.0.0.1:8000", None) == ("127.0.0.1:8000", "127.0.0.1:8001")
    assert addresses("localhost:9", "other:7") == ("localhost:9", "other:7")
    assert addresses("http://[::1]:8000", None) == ("[::1]:8000", "[::1]:8001")
    for wrong in ("https://a:1", "http://a:1/v2", "http://a:port", "http://"):
        with pytest.raises(ConfigError, match="URL: "):
            addresses(wrong, None)


def test_the_figure_says_what_it_shows():
    markup = load_svg([record(1, 100), record(2, 150)], name="load")
    assert 'aria-label="Load over http: 1 clients 100/s, p99 3 ms; 2 clients 150/s, p99 3 ms"' in markup
