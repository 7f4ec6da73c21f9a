"""The check's arithmetic; a real server is asked in test_real_server.py."""

import contextlib
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from serve_builds import make_build, write_build
from small_networks import build_document

from nm2trt.artifacts import BatchRange, BuildDocument, GraphPort
from nm2trt.artifacts.server_report import LoadRecord
from nm2trt.errors import ConfigError, InputError
from nm2trt.report.server_load import load_svg
from nm2trt.serve.address import Tls, read_grpc_address, read_headers, read_http_address
from nm2trt.serve.answers import Failure, RequestFailed, read_http_answer
from nm2trt.serve.check_metadata import port_differences
from nm2trt.serve.compare import compare_answer, output_scales
from nm2trt.serve.load import levels, load_requests, run_level, saturation, until_saturated
from nm2trt.serve.reference import Reference, read_limits
from nm2trt.serve.samples import choose_samples, read_samples, read_shapes


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


@given(right=VALUES, wrong=VALUES, larger=VALUES)
def test_an_answer_is_held_against_all_answers_size(right, wrong, larger):
    absolute = max(abs(float(a) - float(b)) for a, b in zip(right.ravel(), wrong.ravel(), strict=True))
    scale = max(abs(float(a)) for a in (*right.ravel(), *larger.ravel())) or 1.0
    scales = output_scales([{"y": right}, {"y": larger}])
    found = compare_answer({"y": right}, {"y": wrong}, tolerance=0.5, scales=scales)
    assert all(one.passed for one in found) is bool(absolute / scale <= 0.5)
    assert compare_answer({"y": right}, {"y": right.copy()}, tolerance=0.5, scales=scales) == []


def square_requests(count=8):
    return [({"x": np.float32([[at]])}, {"y": np.float32([[at * at]])}) for at in range(count)]


class Squares:
    """A server in this process; `fault` may spoil an answer."""

    def __init__(self, fault=None):
        self.fault, self.asked, self.lock = fault, 0, threading.Lock()

    def infer(self, feed):
        with self.lock:
            self.asked += 1
            asked = self.asked
        if self.fault == "errors" and asked % 3 == 0:
            raise RequestFailed(Failure.NO_ANSWER, "reset by peer")
        wrong = self.fault == "wrong" and asked % 3 == 0
        return {"y": feed["x"] ** 2 + wrong}


@pytest.mark.parametrize("fault", [None, "errors", "wrong"])
def test_every_request_is_counted_once(fault):
    server = Squares(fault)

    @contextmanager
    def connect():
        yield server

    found = run_level("grpc", connect, square_requests(), concurrency=4, duration_s=0.2, tolerance=1e-6)
    assert found.requests + found.errors + found.wrong == server.asked > 0
    assert (found.errors > 0, found.wrong > 0) == (fault == "errors", fault == "wrong")
    expected = {"errors": "The server did not answer: reset by peer", "wrong": "wrong answer, output y", None: ""}
    assert found.first_error.startswith(expected[fault])
    assert (found.first_error == "") is (fault is None)
    assert found.throughput_per_s == pytest.approx(found.requests / found.seconds)


@pytest.mark.parametrize("when", ["opening", "asking", "hanging"])
def test_a_client_that_dies_is_an_error(when):
    number = iter(range(100))
    stop = threading.Event()

    class Dying(Squares):
        def infer(self, feed):
            if when == "hanging":
                stop.wait(20)
            if when == "asking" and self.asked == 5:
                raise ZeroDivisionError("of a library")
            return super().infer(feed)

    server = Dying()

    @contextmanager
    def connect():
        if when == "opening" and next(number) == 1:
            raise OSError("too many open files")
        yield server

    options = {"concurrency": 2, "duration_s": 0.1, "tolerance": 1e-6, "timeout_s": -9.0}
    found = run_level("http", connect, square_requests(), **options)
    stop.set()
    assert found.errors > 0
    expected = {
        "opening": "a client failed: OSError: too many open files",
        "asking": "a client failed: ZeroDivisionError: of a library",
        "hanging": "a client's request did not end",
    }
    assert found.first_error.startswith(expected[when])


def test_samples_of_a_build(tmp_path):
    for name, fixed in (("dynamic", None), ("fixed", 4)):
        folder = make_build(tmp_path / name, fixed_batch=fixed)
        build = BuildDocument.read(folder)
        samples = choose_samples(build, {}, count=5)
        (group,) = samples.groups
        assert samples.count == 5
        feed = group.feed(4, 2)
        assert feed["x"].shape == ((2, 4, 6, 6) if fixed is None else (4, 4, 6, 6))
        if fixed is None:
            # They wrap around.
            assert (feed["x"] == np.concatenate([group.feed(4)["x"], group.feed(0)["x"]])).all()
        for sent, expected in load_requests(samples, Reference(folder / "model.onnx")):
            assert expected["y"].shape[0] == len(sent["x"])
    (folder / "model.onnx").write_bytes(b"broken")
    with pytest.raises(InputError, match="ONNX Runtime cannot run it"):
        Reference(folder / "model.onnx")


def sequence_network(rows=300):
    """ids, mask, types [N, seq] and lengths [N]; one table of `rows`, one of 2."""
    tables = {"words": rows, "kinds": 2}
    nodes = [
        helper.make_node("Cast", ["ids"], ["ids64"], to=TensorProto.INT64),
        helper.make_node("Gather", ["words", "ids64"], ["e"]),
        helper.make_node("Gather", ["kinds", "types"], ["t"]),
        helper.make_node("Add", ["e", "t"], ["s"]),
        helper.make_node("Unsqueeze", ["mask", "two"], ["m1"]),
        helper.make_node("Mul", ["s", "m1"], ["sm"]),
        helper.make_node("ReduceSum", ["sm", "one"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["lengths"], ["lf"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["lf", "one"], ["l1"]),
        helper.make_node("Div", ["sum", "l1"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.arange(size * 4, dtype=np.float32).reshape(size, 4), name)
        for name, size in tables.items()
    ]
    constants += [numpy_helper.from_array(np.array([at], np.int64), name) for name, at in (("one", 1), ("two", 2))]
    kinds = {"ids": TensorProto.INT32, "mask": TensorProto.FLOAT, "types": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(name, kind, ["N", "seq"]) for name, kind in kinds.items()]
    inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT64, ["N"]))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])]
    graph = helper.make_graph(nodes, "sequence", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_a_network_takes_is_drawn(tmp_path):
    folder = write_build(tmp_path / "build", sequence_network())
    build, onnx = BuildDocument.read(folder), folder / "model.onnx"
    limits = read_limits(onnx)
    assert limits == {"ids": 300, "types": 2}
    samples = choose_samples(build, limits)
    assert "ids over all 300 rows" in samples.words
    lengths = {group.feed(0)["ids"].shape[1] for group in samples.groups}
    assert len(lengths) > 1
    for group in samples.groups:
        seen = set()
        for at in range(group.count):
            feed = group.feed(at)
            # A row counts only where the mask does not hide it.
            seen |= set(feed["ids"][feed["mask"] == 1].tolist())
            assert set(np.unique(feed["mask"])) <= {0.0, 1.0}
            assert (feed["lengths"] >= 1).all()
            assert (feed["lengths"] <= feed["ids"].shape[1]).all()
        # Once is enough, where the fewest samples do it.
        longest = feed["ids"].shape[1] == max(lengths)
        assert seen <= set(range(300))
        assert not longest or len(seen) == 300
        assert any((group.feed(at)["mask"] == 0).any() for at in range(group.count))
        assert all(np.isfinite(expected["y"]).all() for _, expected in load_requests(samples, Reference(onnx)))


@given(rows=st.integers(1, 200), size=st.integers(1, 9), batch=st.sampled_from(["N", 1, 3]))
@examples(30)
def test_every_row_of_a_table_is_looked_up(rows, size, batch):
    port = GraphPort(name="ids", dtype="int64", shape=(batch, size))
    output = GraphPort(name="y", dtype="float32", shape=(batch, 1))
    document = build_document(Path(__file__)).model_copy(
        update={"inputs": (port,), "outputs": (output,), "batch": BatchRange(min=1, opt=2, max=4)}
    )
    (group,) = choose_samples(document.model_copy(update={"source": no_data(document)}), {"ids": rows}, count=3).groups
    drawn = np.concatenate([group.feed(at)["ids"].ravel() for at in range(group.count)])
    assert set(drawn.tolist()) == set(range(rows))
    needed = -(-rows // (size * (batch if isinstance(batch, int) else 1)))
    assert group.count <= max(3, needed + 16)


def no_data(document):
    return document.source.model_copy(update={"data": None})


def test_shapes_of_free_dimensions(tmp_path):
    folder = write_build(tmp_path / "build", sequence_network())
    build = BuildDocument.read(folder)
    assert read_shapes(["ids=1x7"], build) == [{"seq": 7}]
    assert read_shapes(["ids=1x7", "ids=1x9", "mask=1x7"], build) == [{"seq": 7}, {"seq": 9}]
    samples = choose_samples(build, {}, shapes=read_shapes(["ids=1x7", "ids=1x9"], build))
    assert [group.feed(0, 2)["mask"].shape for group in samples.groups] == [(2, 7), (2, 9)]
    for texts, words in (
        (["nosuch=1x7"], "no input 'nosuch'"),
        (["ids=7"], "no shape like"),
        (["ids=1xa"], "is not NAME="),
        (["ids=1x7", "mask=1x8"], "'seq' is 7 and 8"),
        (["lengths=3"], "has no effect"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_shapes(texts, build)


def test_samples_of_a_file_are_checked(tmp_path):
    build = BuildDocument.read(write_build(tmp_path / "build", sequence_network()))
    right = {
        "ids": np.zeros((3, 5), np.int64),
        "mask": np.ones((3, 5), np.float64),
        "types": np.zeros((3, 5), np.uint8),
        "lengths": np.ones(3, np.int32),
    }
    np.savez(tmp_path / "right.npz", **right)
    samples = read_samples(tmp_path / "right.npz", build)
    assert samples.words == "all 3 samples of right.npz"
    assert {name: array.dtype.name for name, array in samples.groups[0].arrays.items()} == {
        "ids": "int32", "mask": "float32", "types": "int64", "lengths": "int64",
    }  # fmt: skip
    for change, words in (
        ({"ids": np.zeros((3, 6), np.int64)}, "mask is"),
        ({"ids": np.zeros((2, 5), np.int64)}, "different numbers of samples"),
        ({"ids": np.full((3, 5), 2**40)}, "ids is int64, not int32"),
        ({"lengths": np.ones((3, 1), np.int64)}, "lengths is .3, 1., not"),
        ({"ids": np.zeros((0, 5), np.int64)}, "ids is .0, 5., not"),
    ):
        np.savez(tmp_path / "wrong.npz", **{**right, **change})
        with pytest.raises(InputError, match=words):
            read_samples(tmp_path / "wrong.npz", build)


def test_a_servers_words_cannot_steer_a_terminal():
    with pytest.raises(RequestFailed) as caught:
        read_http_answer(500, b'{"error": "\\u001b[2Jout of\\nmemory\\u0000"}', None)
    assert caught.value.detail == "HTTP 500: ?[2Jout of memory?"


@given(body=st.binary(max_size=60), length=st.none() | st.text(max_size=4) | st.integers(-9, 70).map(str))
def test_no_body_escapes_the_reader(body, length):
    with contextlib.suppress(RequestFailed):
        read_http_answer(200, body, length)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("y") | JSON,
        "datatype": st.sampled_from(["FP32", "INT64", "BOOL", "UINT8", "FP16", "BF16", "BYTES"]) | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=2) | JSON,
        "data": JSON,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(0, 9) | JSON}) | JSON,
    },
)


@given(outputs=st.lists(ENTRY, max_size=2) | JSON, rest=st.binary(max_size=12))
def test_no_document_escapes_the_reader(outputs, rest):
    head = json.dumps({"outputs": outputs}).encode()
    with contextlib.suppress(RequestFailed):
        answer = read_http_answer(200, head + rest, str(len(head)))
        assert all(isinstance(value, np.ndarray) for value in answer.outputs.values())


@given(values=hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)), cut=st.integers(-4, 4))
def test_every_byte_of_a_tensor_counts(values, cut):
    raw = values.tobytes() + b"\0\0\0\0"
    raw = raw[: len(raw) - 4 + cut] if cut + values.nbytes >= 0 else b""
    entry = {"name": "y", "datatype": "FP32", "shape": list(values.shape), "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"outputs": [entry]}).encode()
    if len(raw) == values.nbytes:
        found = read_http_answer(200, head + raw, str(len(head))).outputs["y"]
        np.testing.assert_array_equal(found, values)
        return
    with pytest.raises(RequestFailed) as caught:
        read_http_answer(200, head + raw, str(len(head)))
    assert caught.value.failure is Failure.UNREADABLE


def test_descriptions_that_differ(tmp_path):
    build = BuildDocument.read(make_build(tmp_path / "build"))
    right = {"name": "x", "datatype": "FP32", "shape": ["-1", "4", "6", "6"]}
    assert port_differences("input", build.inputs, [right], set()) == []
    assert port_differences("input", build.inputs, [], set()) == ["input 'x' is not served"]
    (text,) = port_differences("input", build.inputs, [{**right, "datatype": "FP16"}], set())
    assert text == "input 'x' is FP16, not FP32"
    (text,) = port_differences("input", build.inputs, [{**right, "shape": [-1, 4, 6, 7]}], set())
    assert text == "input 'x' has shape [-1, 4, 6, 7], not [-1, 4, 6, 6]"
    assert "is served, and the build has none" in port_differences("input", (), [right], set())[0]


def http_address(url, *, tls=None):
    return read_http_address(url, tls=tls or Tls(), headers={})


def grpc_address(text, url, *, tls=None):
    return read_grpc_address(text, http_address(url), tls=tls or Tls(), headers={})


def test_addresses():
    assert http_address("http://127.0.0.1").netloc == "127.0.0.1:8000"
    assert http_address("http://[::1]:8000").netloc == "[::1]:8000"
    ingress = http_address("https://models.example/serving/net/")
    assert (ingress.netloc, ingress.prefix, ingress.tls) == ("models.example:443", "/serving/net", Tls())
    assert grpc_address(None, "http://[::1]:8000").netloc == "[::1]:8001"
    assert grpc_address("other:7", "localhost:9").netloc == "other:7"
    assert grpc_address("grpcs://other:443", "localhost:9").tls == Tls()
    assert [http_address(f"http://{host}:1").is_loopback for host in ("127.8.0.1", "localhost", "[::1]", "a.b")] == [
        True, True, True, False,
    ]  # fmt: skip
    for wrong in ("ftp://a:1", "http://a:1/v2", "http://a:port", "http://", "http://me:secret@a", "http://a/?b"):
        with pytest.raises(ConfigError, match="URL: "):
            http_address(wrong)
    with pytest.raises(ConfigError, match="no use over http"):
        http_address("http://a:1", tls=Tls(insecure=True))
    for text, url in ((None, "https://a"), (None, "http://a/prefix"), ("a", "http://a"), ("a:1/b", "http://a")):
        with pytest.raises(ConfigError, match="--grpc: "):
            grpc_address(text, url)
    with pytest.raises(ConfigError, match="--insecure"):
        read_grpc_address("grpcs://a:1", http_address("https://a"), tls=Tls(insecure=True), headers={})


def test_headers(tmp_path):
    (tmp_path / "headers").write_text("Authorization: Bearer secret\n\nHost: net.example\n")
    assert read_headers(["X-Team: a: b", f"@{tmp_path / 'headers'}"]) == {
        "X-Team": "a: b", "Authorization": "Bearer secret", "Host": "net.example",
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        read_headers(["Bearer secret"])
    assert "secret" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_headers([f"@{tmp_path / 'nothing'}"])


def test_the_figure_says_what_it_shows():
    markup = load_svg([record(1, 100), record(2, 150)], name="load")
    assert 'aria-label="Load over http: 1 clients 100/s, p99 3 ms; 2 clients 150/s, p99 3 ms"' in markup
