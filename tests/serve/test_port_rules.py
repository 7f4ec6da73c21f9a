"""Which ports a server can batch, and which Triton can describe."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import assert_one_error_line, nm2trt_inline
from onnx import TensorProto, helper, numpy_helper
from serve_builds import make_build

from nm2trt.artifacts import BuildDocument
from nm2trt.serve.port_rules import unbatched_ports
from nm2trt.serve.trial_run import try_run
from nm2trt.serve.warmup import Warmup, sample_inputs, warmup_data

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
NAMES = {FLOAT: "float32", INT64: "int64", BOOL: "bool", TensorProto.INT32: "int32", TensorProto.UINT8: "uint8"}


def build_of(folder, nodes, inputs, outputs, weights=()):
    """A build folder of an own graph; inputs and outputs are (name, type, shape)."""
    make_build(folder)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    document = json.loads((folder / "build.json").read_text())
    content = (folder / "model.onnx").read_bytes()
    document["files"] = {"model.onnx": {"sha256": __import__("hashlib").sha256(content).hexdigest(), "size_bytes": 1}}
    for kind, ports in (("inputs", inputs), ("outputs", outputs)):
        document[kind] = [{"name": name, "dtype": NAMES[dtype], "shape": shape} for name, dtype, shape in ports]
    if not any(isinstance(size, str) for _, _, shape in inputs for size in shape):
        document["batch"] = None
    (folder / "build.json").write_text(json.dumps(document))
    return folder


def packaged(build, repository, *options):
    return nm2trt_inline("package", build, "--server", "triton-cpu", "-o", repository, "--name", "net", *options)


def per_sample(folder):
    nodes = [
        helper.make_node("ReduceSum", ["x", "axis"], ["score"], keepdims=0),
        helper.make_node("Cast", ["length"], ["echo"], to=FLOAT),
    ]
    return build_of(
        folder,
        nodes,
        [("x", FLOAT, ["N", 4]), ("length", INT64, ["N"])],
        [("score", FLOAT, ["N"]), ("echo", FLOAT, ["N"])],
        [("axis", np.array([1], np.int64))],
    )


def scalar(folder, batch):
    nodes = [helper.make_node("ReduceMean", ["x"], ["loss"], keepdims=0), helper.make_node("Relu", ["x"], ["y"])]
    return build_of(folder, nodes, [("x", FLOAT, [batch, 4])], [("y", FLOAT, [batch, 4]), ("loss", FLOAT, [])])


def detections(folder, batch):
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Transpose", ["places"], ["found"], perm=[1, 0]),
    ]
    outputs = [("y", FLOAT, [batch, 4]), ("found", INT64, ["num_found", 2])]
    return build_of(folder, nodes, [("x", FLOAT, [batch, 4])], outputs)


def time_first(folder):
    """The batch is the second dimension, as in a recurrent network."""
    return build_of(
        folder, [helper.make_node("Relu", ["x"], ["y"])], [("x", FLOAT, [6, "N", 4])], [("y", FLOAT, [6, "N", 4])]
    )


def numbered(folder):
    """A converter that cannot name the output's batch."""
    return build_of(
        folder, [helper.make_node("Relu", ["x"], ["y"])], [("x", FLOAT, ["N", 4])], [("y", FLOAT, ["unk__7", 4])]
    )


def test_one_number_per_sample_is_reshaped(tmp_path):
    result = packaged(per_sample(tmp_path / "b"), tmp_path / "repo")
    assert result.returncode == 0, result.stderr
    config = (tmp_path / "repo/net/config.pbtxt").read_text()
    assert config.count("dims: [ 1 ]\n  reshape {\n    shape: []\n  }") == 3
    assert "dims: []" not in config


@pytest.mark.parametrize(
    ("make", "batch", "options", "words"),
    [
        (scalar, 2, (), "output 'loss' is a scalar (rank 0), and Triton describes none"),
        (scalar, "N", (), "output 'loss' [] has no batch"),
        (scalar, "N", ("--max-batch", "0"), "output 'loss' is a scalar"),
        (detections, "N", (), "output 'found' [num_found, 2] has no batch"),
    ],
)
def test_what_no_configuration_describes_is_refused_in_one_line(tmp_path, make, batch, options, words):
    result = packaged(make(tmp_path / "b", batch), tmp_path / "repo", *options)
    assert_one_error_line(result, 3, words)
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize(("batch", "options"), [(2, ()), ("N", ("--max-batch", "0"))])
def test_detections_are_served_without_batching(tmp_path, batch, options):
    result = packaged(detections(tmp_path / "b", batch), tmp_path / "repo", *options)
    assert result.returncode == 0, result.stderr
    config = (tmp_path / "repo/net/config.pbtxt").read_text()
    assert "max_batch_size: 0" in config
    assert "dims: [ -1, 2 ]" in config


def test_a_batch_that_is_not_first_is_no_batch_for_a_server(tmp_path):
    result = packaged(time_first(tmp_path / "b"), tmp_path / "repo")
    assert_one_error_line(result, 3, "input 'x' [6, N, 4] has no batch")


def test_an_output_without_the_batchs_name_is_run_to_tell(tmp_path):
    build = numbered(tmp_path / "b")
    assert unbatched_ports(BuildDocument.read(build), build / "model.onnx") == []
    assert packaged(build, tmp_path / "repo").returncode == 0
    other = detections(tmp_path / "d", "N")
    assert unbatched_ports(BuildDocument.read(other), other / "model.onnx") == ["output 'found' [num_found, 2]"]


def test_no_batching_leaves_nothing_to_wait_for(tmp_path):
    result = packaged(numbered(tmp_path / "b"), tmp_path / "repo", "--max-batch", "0", "--queue-delay-us", "5")
    assert_one_error_line(result, 2, "--queue-delay-us: the server does not batch")


def gather(folder, rows, *, offset=0, dtype=INT64, length=6):
    """Token numbers; with an offset, positions that begin behind padding as RoBERTa's do."""
    nodes = [
        helper.make_node("Add", ["ids", "offset"], ["shifted"]),
        helper.make_node("Gather", ["table", "shifted"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["y"], keepdims=0),
    ]
    values = np.int64 if dtype == INT64 else np.int32
    return build_of(
        folder,
        nodes,
        [("ids", dtype, ["N", length])],
        [("y", FLOAT, ["N", 3])],
        [
            ("table", np.ones((rows, 3), np.float32)),
            ("offset", np.array(offset, values)),
            ("axis", np.array([1], np.int64)),
        ],
    )


@pytest.mark.parametrize(("rows", "offset"), [(1, 0), (2, 0), (50, 0), (3, 2), (3, 1), (30_000, 5)])
@pytest.mark.parametrize("dtype", [INT64, TensorProto.INT32])
def test_warm_up_numbers_lie_within_the_table(tmp_path, rows, offset, dtype):
    build = gather(tmp_path / "b", rows, offset=offset, dtype=dtype)
    document = BuildDocument.read(build)
    warmup = warmup_data(document.inputs, build / "model.onnx", batched=True)
    names, data = warmup.files, warmup.data
    ids = np.frombuffer(data[names["ids"]], NAMES[dtype])
    assert ids.shape == (6,)
    assert 0 <= (ids + offset).min() <= (ids + offset).max() < rows


def test_warm_up_takes_lengths_and_masks_that_are_not_zero(tmp_path):
    nodes = [
        # An integer division by zero ends the process.
        helper.make_node("Div", ["hundred", "length"], ["share"]),
        helper.make_node("Cast", ["share"], ["y"], to=FLOAT),
        helper.make_node("Not", ["mask"], ["z"]),
    ]
    build = build_of(
        tmp_path / "b",
        nodes,
        [("length", INT64, ["N"]), ("mask", BOOL, ["N", 4])],
        [("y", FLOAT, ["N"]), ("z", BOOL, ["N", 4])],
        [("hundred", np.array(100, np.int64))],
    )
    document = BuildDocument.read(build)
    warmup = warmup_data(document.inputs, build / "model.onnx", batched=True)
    names, data = warmup.files, warmup.data
    assert np.frombuffer(data[names["length"]], np.int64).tolist() == [1]
    assert np.frombuffer(data[names["mask"]], bool).tolist() == [True] * 4


def test_floating_point_is_warmed_up_with_zeros(tmp_path):
    build = numbered(tmp_path / "b")
    assert warmup_data(BuildDocument.read(build).inputs, build / "model.onnx", batched=True) == Warmup()


@pytest.mark.parametrize("batch", [1, 3])
def test_sample_inputs_run(tmp_path, batch):
    build = gather(tmp_path / "b", 1)
    feeds = sample_inputs(BuildDocument.read(build).inputs, build / "model.onnx", batch=batch)
    session = onnxruntime.InferenceSession(str(build / "model.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, feeds)[0].shape == (batch, 3)


def reshaped(folder):
    """Takes sequences of 6 only, which the graph does not say."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    shape = ("shape", np.array([-1, 2, 3], np.int64))
    return build_of(folder, nodes, [("x", FLOAT, ["N", "T"])], [("y", FLOAT, ["N", 2, 3])], [shape])


@pytest.mark.parametrize(("options", "dims"), [((), (8,)), (("--max-batch", "0"), (1, 8))])
def test_a_free_length_is_warmed_up_at_a_length_that_runs(tmp_path, options, dims):
    build = gather(tmp_path / "b", 9, length="T")
    result = packaged(build, tmp_path / "repo", *options)
    assert result.returncode == 0, result.stderr
    config = (tmp_path / "repo/net/config.pbtxt").read_text()
    assert f"dims: [ {', '.join(map(str, dims))} ]" in config
    (file,) = (tmp_path / "repo/net/warmup").iterdir()
    assert file.name in config
    assert np.frombuffer(file.read_bytes(), np.int64).shape == (8,)


def test_a_free_length_that_does_not_run_is_not_warmed_up(tmp_path):
    result = packaged(reshaped(tmp_path / "b"), tmp_path / "repo")
    assert result.returncode == 0, result.stderr
    config = (tmp_path / "repo/net/config.pbtxt").read_text()
    assert "# No warm-up" in config
    assert "model_warmup" not in config


def test_a_free_length_has_no_profile_for_onnx_runtime(tmp_path):
    result = nm2trt_inline("package", gather(tmp_path / "b", 9, length="T"), "-o", tmp_path / "repo", "--name", "net")
    assert result.returncode == 0, result.stderr
    config = (tmp_path / "repo/net/config.pbtxt").read_text()
    assert "trt_profile" not in config
    assert "# No profile" in config


def refusing(folder):
    """Takes no length below 3: neither zeros nor ones run."""
    nodes = [
        helper.make_node("Sub", ["length", "one"], ["less"]),
        helper.make_node("Gather", ["hundred", "less"], ["row"]),
        helper.make_node("Div", ["row", "less"], ["share"]),
        helper.make_node("Cast", ["share"], ["y"], to=FLOAT),
    ]
    return build_of(
        folder,
        nodes,
        [("length", INT64, ["N"])],
        [("y", FLOAT, ["N"])],
        [("one", np.array(1, np.int64)), ("hundred", np.array([100, 100, 100], np.int64))],
    )


@pytest.mark.not_quick
def test_a_run_that_ends_the_process_is_not_ours(tmp_path):
    """ONNX Runtime divides integers by zero, and the kernel ends it."""
    build = refusing(tmp_path / "b")
    feeds = {"length": np.array([1], np.int64)}
    assert try_run(build / "model.onnx", feeds) is False
    assert try_run(build / "model.onnx", {"length": np.array([3], np.int64)}) is True
    (tmp_path / "none.onnx").write_bytes(b"no network")
    assert try_run(tmp_path / "none.onnx", feeds) is None


def test_pixels_are_zeros(tmp_path):
    nodes = [helper.make_node("Cast", ["image"], ["y"], to=FLOAT)]
    shape = ["N", 64, 64, 3]
    build = build_of(tmp_path / "b", nodes, [("image", TensorProto.UINT8, shape)], [("y", FLOAT, shape)])
    assert packaged(build, tmp_path / "repo").returncode == 0
    assert "zero_data" in (tmp_path / "repo/net/config.pbtxt").read_text()
    assert not (tmp_path / "repo/net/warmup").exists()


@pytest.mark.parametrize(
    ("dtype", "words"), [("object", "output 'y' holds text"), ("float8_e4m3fn", "output 'y' holds float8_e4m3fn")]
)
@pytest.mark.parametrize("server", ["triton", "triton-cpu"])
def test_values_that_no_tensor_holds_are_refused(tmp_path, dtype, words, server):
    build = make_build(tmp_path / "build")
    document = json.loads((build / "build.json").read_text())
    document["outputs"][0]["dtype"] = dtype
    (build / "build.json").write_text(json.dumps(document))
    result = nm2trt_inline("package", build, "--server", server, "-o", tmp_path / "repository", "--name", "net")
    assert_one_error_line(result, 3, str(build), words)
    assert not (tmp_path / "repository").exists()


def test_a_linked_model_folder_is_called_a_link(tmp_path):
    build = make_build(tmp_path / "build")
    assert packaged(build, tmp_path / "real").returncode == 0
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/net").symlink_to(tmp_path / "real/net")
    result = packaged(build, tmp_path / "linked")
    assert_one_error_line(result, 2, "linked/net", "is a symbolic link to")
    assert sorted(path.name for path in (tmp_path / "real/net").iterdir() if path.is_dir()) == ["1"]
