"""check-server against a server that is wrong: exit 1 and the right words for every way to be wrong."""

import json
import socket
import threading

import numpy as np
import onnx
import pytest
from faulty_server import HTTP_WORDS, LOAD_WORDS, MODEL, RIGHT, WORDS, grpc_server, http_server
from helpers import nm2trt_inline
from onnx import TensorProto, helper, numpy_helper
from serve_builds import TABLE_ROWS, needs_client, token_network, write_build


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return write_build(tmp_path_factory.mktemp("tokens") / "build", token_network())


def check(build, url, *options):
    return nm2trt_inline("check-server", f"http://{url}", MODEL, "--build", build, *options)


def error_line(result):
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("nm2trt: error: ")]
    return line


def assert_found_out(result, words):
    line = error_line(result)
    assert result.returncode == 1, line
    assert words in line
    assert "by inf" not in line
    assert json.loads(result.stdout)["verdict"] == "fail"


def timeout_option(mode):
    """A short limit only for the faults that are about time: on a loaded machine a right answer is late too."""
    return ("--timeout", {"slow": "0.5", "dripping": "3"}.get(mode, "30"))


@pytest.mark.parametrize("mode", RIGHT)
def test_what_is_unusual_and_right_passes(build, mode):
    with http_server(build / "model.onnx", mode) as url:
        result = check(build, url, "--protocol", "http", "--duration", "0.1", "--max-concurrency", "2", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    (outputs,) = document["outputs"]
    assert (outputs["errors"], outputs["wrong"], outputs["version"]) == (0, 0, "2")
    assert outputs["requests"] >= 200
    assert f"ids over all {TABLE_ROWS} rows" in outputs["inputs"]
    assert all(one["requests"] > 0 for one in document["load"])


@pytest.mark.parametrize("mode", [*WORDS, *HTTP_WORDS])
def test_every_fault_over_http(build, mode):
    with http_server(build / "model.onnx", mode) as url:
        result = check(build, url, "--protocol", "http", "--no-load", "--json", *timeout_option(mode))
    assert_found_out(result, {**WORDS, **HTTP_WORDS}[mode])


@needs_client
@pytest.mark.parametrize("mode", WORDS)
def test_every_fault_over_grpc(build, mode):
    with grpc_server(build / "model.onnx", mode) as (address, _):
        result = check(
            build, "127.0.0.1:9", "--grpc", address, "--protocol", "grpc", "--no-load", "--json", *timeout_option(mode)
        )
    assert_found_out(result, WORDS[mode])


@needs_client
@pytest.mark.parametrize("mode", ["ok", "json", "no-id"])
def test_what_is_right_over_grpc_passes(build, mode):
    with grpc_server(build / "model.onnx", mode) as (address, _):
        result = check(
            build, "127.0.0.1:9", "--grpc", address, "--protocol", "grpc", "--duration", "0.1",
            "--max-concurrency", "2",
        )  # fmt: skip
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("mode", LOAD_WORDS)
def test_a_fault_under_load_only(build, mode):
    with http_server(build / "model.onnx", mode) as url:
        result = check(build, url, "--protocol", "http", "--json", "--duration", "1", "--max-concurrency", "4")
    assert_found_out(result, LOAD_WORDS[mode])
    document = json.loads(result.stdout)
    assert document["outputs"][0]["passed"]
    assert document["load"][-1]["errors"] + document["load"][-1]["wrong"] > 0


def flat_network(*, batch):
    """x [batch, 8], length [batch] -> y [batch, 8], score [batch], and with a fixed batch the scalar mean."""
    nodes = [
        helper.make_node("Cast", ["length"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["f", "one"], ["f1"]),
        helper.make_node("Div", ["x", "f1"], ["y"]),
        helper.make_node("ReduceMax", ["y"], ["score"], axes=[1], keepdims=0),
    ]
    outputs = [("y", [batch, 8]), ("score", [batch])]
    if isinstance(batch, int):
        nodes.append(helper.make_node("ReduceMean", ["y"], ["mean"], keepdims=0))
        outputs.append(("mean", []))
    graph = helper.make_graph(
        nodes,
        "flat",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8]),
            helper.make_tensor_value_info("length", TensorProto.INT64, [batch]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(np.array([1], np.int64), "one")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@needs_client
@pytest.mark.parametrize("batch", ["N", 2])
@pytest.mark.parametrize("mode", ["ok", "padded"])
def test_one_number_a_sample_and_scalars(tmp_path, batch, mode):
    build = write_build(tmp_path / "build", flat_network(batch=batch))
    onnx_file = build / "model.onnx"
    with http_server(onnx_file, mode) as url, grpc_server(onnx_file, mode) as (address, _):
        result = check(build, url, "--grpc", address, "--duration", "0.1", "--max-concurrency", "2")
    assert result.returncode == 0, result.stderr
    assert "not a bit differs" in result.stdout


def detection_network(threshold, batch="N"):
    """x [batch, 8] -> positive [batch, 8], and where it is: selected [num_selected, 2]."""
    nodes = [
        helper.make_node("Greater", ["x", "threshold"], ["positive"]),
        helper.make_node("NonZero", ["positive"], ["at"]),
        helper.make_node("Transpose", ["at"], ["selected"], perm=[1, 0]),
    ]
    graph = helper.make_graph(
        nodes,
        "detection",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8])],
        [
            helper.make_tensor_value_info("positive", TensorProto.BOOL, [batch, 8]),
            helper.make_tensor_value_info("selected", TensorProto.INT64, ["num_selected", 2]),
        ],
        [numpy_helper.from_array(np.float32(threshold), "threshold")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("threshold", [0.0, 1e9])
def test_an_output_whose_size_follows_from_the_data(tmp_path, threshold, batch):
    build = write_build(tmp_path / "build", detection_network(threshold, batch))
    asked = ("--protocol", "http", "--duration", "0.1", "--max-concurrency", "2")
    with http_server(build / "model.onnx", "ok") as url:
        result = check(build, url, *asked)
    assert result.returncode == 0, result.stderr
    assert ("mixed-up answers" in result.stdout) is (threshold > 0)
    with http_server(build / "model.onnx", "joins") as url:
        result = check(build, url, *asked)
    assert result.returncode == (1 if batch == "N" else 0)
    if batch == "N":
        assert "output 'selected' has no batch, and the server joins requests" in error_line(result)


def test_the_version_that_was_asked_for_must_answer(build):
    with http_server(build / "model.onnx", "ok") as url:
        assert check(build, url, "--protocol", "http", "--no-load", "--version", "2").returncode == 0
        assert "version '2', not '1'" in error_line(check(build, url, "--protocol", "http", "--version", "1"))
        line = error_line(check(build, url, "--protocol", "http", "--version", "3"))
        assert "version 3 was asked for, and 1, 2 is listed" in line


def test_both_protocols_in_one_check(build):
    onnx_file = build / "model.onnx"
    with http_server(onnx_file, "ok") as url, grpc_server(onnx_file, "off-by-one") as (address, _):
        result = check(build, url, "--grpc", address, "--no-load", "--json")
    assert_found_out(result, "grpc: outputs differ")
    assert [one["passed"] for one in json.loads(result.stdout)["outputs"]] == [True, False]


def test_nothing_listens(build):
    result = check(build, "127.0.0.1:9", "--protocol", "http")
    assert result.returncode == 3
    assert "The server did not answer: Connection refused" in error_line(result)


@needs_client
def test_something_else_listens(build, tmp_path):
    """A server of the other protocol, and one that hangs up: no answer, whatever it says."""
    with grpc_server(build / "model.onnx", "ok") as (address, _):
        result = check(build, address, "--protocol", "http", "--json", "-o", tmp_path / "report")
    assert_found_out(result, "http: readiness: the answer cannot be read: no HTTP")
    page = (tmp_path / "report/server.html").read_text()
    assert "nothing was asked" in page
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closing = threading.Thread(target=lambda: [listener.accept()[0].close() for _ in range(2)], daemon=True)
        closing.start()
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        assert_found_out(check(build, url, "--protocol", "http", "--json"), "readiness: The server did not answer")


def test_a_server_without_the_binary_extension(build):
    with http_server(build / "model.onnx", "json") as url:
        assert check(build, url, "--protocol", "http", "--no-load", "--encoding", "json").returncode == 0
    with http_server(build / "model.onnx", "json-short") as url:
        result = check(build, url, "--protocol", "http", "--no-load", "--encoding", "json", "--json")
    assert_found_out(result, "output 'a' of FP32")


def position_network(positions):
    """ids [N, seq], with a table of so many positions -> a [N, seq, 2]."""
    tables = {"table": 30, "places": positions}
    constants = [
        numpy_helper.from_array(np.arange(rows * 2, dtype=np.float32).reshape(rows, 2), name)
        for name, rows in tables.items()
    ]
    constants += [numpy_helper.from_array(np.array(at, np.int64), f"c{at}") for at in (0, 1)]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Shape", ["ids"], ["shape"]),
        helper.make_node("Gather", ["shape", "c1"], ["length"]),
        helper.make_node("Range", ["c0", "length", "c1"], ["at"]),
        helper.make_node("Gather", ["places", "at"], ["p"]),
        helper.make_node("Add", ["e", "p"], ["a"]),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", "seq"])]
    outputs = [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", "seq", 2])]
    graph = helper.make_graph(nodes, "positions", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("positions", "lengths"), [(40, (8, 13, 32)), (14, (8, 13)), (5, ())])
def test_lengths_that_the_network_takes(tmp_path, positions, lengths):
    build = write_build(tmp_path / "build", position_network(positions))
    with http_server(build / "model.onnx", "ok") as url:
        result = check(build, url, "--protocol", "http", "--no-load", "--json")
        if not lengths:
            assert result.returncode == 3
            assert "give --samples F.npz or --shape" in error_line(result)
            result = check(build, url, "--protocol", "http", "--no-load", "--json", "--shape", "ids=1x5")
    assert result.returncode == 0, result.stderr
    (outputs,) = json.loads(result.stdout)["outputs"]
    assert "ids over all 30 rows" in outputs["inputs"]
    assert outputs["inputs"].endswith("; ".join(f"seq {length}" for length in lengths or (5,)))


def test_samples_of_a_file(build, tmp_path):
    right = np.arange(12).reshape(2, 6)
    np.savez(tmp_path / "right.npz", ids=right)
    with http_server(build / "model.onnx", "some-tokens") as url:
        # None of these is the row that the server has wrong.
        arguments = ("--protocol", "http", "--no-load", "--samples")
        assert check(build, url, *arguments, tmp_path / "right.npz").returncode == 0
        np.savez(tmp_path / "found.npz", ids=np.full((1, 6), 37, np.int32))
        assert check(build, url, *arguments, tmp_path / "found.npz").returncode == 1
        np.savez(tmp_path / "wrong.npz", ids=right.astype(np.float32), other=right)
        result = check(build, url, *arguments, tmp_path / "wrong.npz")
        assert result.returncode == 3
        assert "the network has no input other; ids is float32, not int64" in error_line(result)
        np.savez(tmp_path / "beyond.npz", ids=right + TABLE_ROWS)
        result = check(build, url, *arguments, tmp_path / "beyond.npz")
        assert result.returncode == 3
        assert "ONNX Runtime cannot run it" in error_line(result)
        (tmp_path / "broken.npz").write_bytes(b"PK broken")
        result = check(build, url, *arguments, tmp_path / "broken.npz")
        assert result.returncode == 3
        assert "no readable .npz" in error_line(result)


def test_a_network_with_one_answer_is_told(tmp_path):
    model = token_network()
    for name in ("wa", "wb"):
        (weight,) = [one for one in model.graph.initializer if one.name == name]
        weight.CopyFrom(numpy_helper.from_array(np.zeros((8, 4), np.float32), name))
    onnx.checker.check_model(model)
    build = write_build(tmp_path / "build", model)
    with http_server(build / "model.onnx", "ok") as url:
        result = check(build, url, "--protocol", "http", "--no-load")
    assert result.returncode == 0
    assert "mixed-up answers would not be found" in result.stdout


def image_network():
    """x [N, height, width] -> a [N, height, 2]: the first columns that a server may take for rows."""
    nodes = [
        helper.make_node("Slice", ["x", "zero", "two", "axis"], ["s"]),
        helper.make_node("Mul", ["s", "half"], ["a"]),
    ]
    constants = {"zero": np.array([0]), "two": np.array([2]), "axis": np.array([2]), "half": np.float32(0.5)}
    graph = helper.make_graph(
        nodes,
        "image",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "height", "width"])],
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", "height", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_free_sizes_differ_from_each_other(tmp_path):
    build = write_build(tmp_path / "build", image_network())
    with http_server(build / "model.onnx", "ok") as url:
        result = check(build, url, "--protocol", "http", "--no-load", "--json")
    assert result.returncode == 0, result.stderr
    assert "height 8, width 13" in json.loads(result.stdout)["outputs"][0]["inputs"]
    with http_server(build / "model.onnx", "fewer-columns") as url:
        result = check(build, url, "--protocol", "http", "--no-load", "--json")
    assert_found_out(result, "output a is float32")
