"""`nm2trt profile` as a user runs it."""

import json

import onnx
import pytest
from helpers import assert_one_error_line, nm2trt, nm2trt_inline
from small_networks import build_folder, small_network

QUICK = ("--batch", "1,2", "--duration", "0.2")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    build_folder(folder / "sparse", small_network(sparse=True))
    build_folder(folder / "dense", small_network(seed=1))
    onnx.save(small_network(channels=12), folder / "wide.onnx")
    (folder / "text.onnx").write_text("this is no ONNX")
    (folder / "empty").mkdir()
    return folder


def test_report_folder_and_table(networks, tmp_path):
    report = tmp_path / "report"
    result = nm2trt("profile", networks / "sparse", "--dense", networks / "dense", *QUICK, "-o", report)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in report.iterdir()} == {"report.json", "report.html"}
    for fragment in ("median ms", "p99 ms", "sparse-repeat", "batch 2: ", "report.html"):
        assert fragment in result.stdout
    assert "backend: auto picked onnxruntime" in result.stderr
    document = json.loads((report / "report.json").read_text())
    assert document["headline"] in result.stdout
    assert document["runner"]["note"] in result.stdout
    assert document["headline"] in (report / "report.html").read_text()
    # Nothing may call it a gain of sparsity.
    assert "speed-up" not in result.stdout + (report / "report.html").read_text()


def test_json_is_one_document_and_nothing_else(networks, tmp_path):
    result = nm2trt_inline("profile", networks / "sparse", *QUICK, "--no-layers", "--json", "-o", tmp_path / "r")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "r" / "report.json").read_text())
    assert document["schema"] == "nm2trt.report/2"
    assert document["dense"]["kind"] == "filled"


def test_every_wrong_option_at_once(networks, tmp_path):
    result = nm2trt_inline(
        "profile", networks / "sparse", "--batch", "0,-1,x", "--duration", "0", "--seed", "-1", "-o", tmp_path / "r"
    )
    assert_one_error_line(result, 2, "--batch: '0', '-1', 'x'", "--duration", "--seed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "dense", "fragments"),
    [
        ("missing", None, ("missing", "no such file or folder")),
        ("text.onnx", None, ("text.onnx", "no readable ONNX")),
        ("empty", None, ("no build.json here",)),
        ("sparse", "wide.onnx", ("not the same graph", "operator 0", "float[12,4,3,3]")),
        ("sparse", "missing", ("missing", "no such file or folder")),
    ],
)
def test_unusable_input(networks, tmp_path, source, dense, fragments):
    options = ("--dense", networks / dense) if dense else ()
    result = nm2trt_inline("profile", networks / source, *options, *QUICK, "-o", tmp_path / "r")
    assert_one_error_line(result, 3, *fragments)
    assert list(tmp_path.iterdir()) == []


def test_tensorrt_without_tensorrt(networks, tmp_path):
    result = nm2trt_inline("profile", networks / "sparse", "--backend", "tensorrt", *QUICK, "-o", tmp_path / "r")
    assert_one_error_line(result, 4, "--backend tensorrt")
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_kept_unless_forced(networks, tmp_path):
    output = tmp_path / "r"
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    assert_one_error_line(nm2trt_inline("profile", networks / "sparse", *QUICK, "-o", output), 2, "exists", "--force")
    forced = nm2trt_inline("profile", networks / "sparse", *QUICK, "-o", output, "--force")
    assert_one_error_line(forced, 2, "nm2trt did not write")
    assert (output / "thesis.txt").read_text() == "mine"
    (output / "thesis.txt").unlink()
    (output / "report.json").write_text("{}")
    assert nm2trt_inline("profile", networks / "sparse", *QUICK, "-o", output, "--force").returncode == 0
    assert json.loads((output / "report.json").read_text())["schema"] == "nm2trt.report/2"


def test_a_table_of_layer_times_becomes_a_report(tmp_path):
    rows = ["layer,dense_engine_ms,sparse_engine_ms,sparse_kernel_chosen"]
    rows += [f"l{index},1.3,1.0,1" for index in range(4)] + [f"d{index},1.04,1.0,0" for index in range(4)]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(rows))
    result = nm2trt_inline("profile", "--layer-times", table, "--batch", "32", "-o", tmp_path / "r")
    assert result.returncode == 0, result.stderr
    assert "4 of 8 layers with weights run sparse kernels" in result.stdout
    assert "sparse kernels account for 1.12x" in result.stdout
    assert json.loads((tmp_path / "r" / "report.json").read_text())["layers"]["chosen"] == 4


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        ((), 2, "nothing to profile"),
        (("--layer-times", "t.csv"), 2, "add --batch N"),
        (("--layer-times", "t.csv", "--batch", "1,2"), 2, "one batch size"),
        (("--layer-times", "t.csv", "--trtexec-sparse", "x"), 2, "exclude each other"),
        (("--trtexec-sparse", "nothing/here"), 3, "no file of trtexec there"),
        (("net.onnx", "--shape", "x=1xN"), 2, "--shape: 'x=1xN'"),
        (("net.onnx", "--rate", "fast"), 2, "--rate: 'fast'"),
        (("net.onnx", "--rate", "5"), 2, "--rate: no effect without --streams"),
        (("net.onnx", "--rebuilds", "0"), 2, "--rebuilds"),
        (("net.onnx", "--trtexec-sparse", "x", "--dense", "y"), 2, "choose one"),
    ],
)
def test_mistakes_are_found_before_any_work(tmp_path, arguments, code, fragment):
    assert_one_error_line(nm2trt_inline("profile", *arguments, "-o", tmp_path / "r"), code, fragment)
    assert list(tmp_path.iterdir()) == []


def test_a_duration_too_short_for_an_interval_is_refused(networks, tmp_path):
    result = nm2trt_inline(
        "profile", networks / "sparse", "--duration", "0.00001", "--backend", "onnxruntime", "-o", tmp_path / "r"
    )
    assert_one_error_line(result, 2, "--duration 1e-05 is too short", "use --duration")


def test_dynamic_dimensions_take_their_values_from_shape(tmp_path):
    path = tmp_path / "wide.onnx"
    onnx.save(small_network(sparse=True, width="W"), path)
    asked = ("--batch", "2", "--duration", "0.2", "--backend", "onnxruntime", "--no-layers")
    assert_one_error_line(nm2trt_inline("profile", path, *asked, "-o", tmp_path / "r"), 3, "--shape x=2x4x?x?")
    result = nm2trt_inline("profile", path, *asked, "--shape", "nosuch=1x2", "-o", tmp_path / "r")
    assert_one_error_line(result, 2, "--shape: no input 'nosuch'; the inputs are x")
    result = nm2trt_inline("profile", path, *asked, "--shape", "x=1x4x6x6", "-o", tmp_path / "r")
    assert result.returncode == 0, result.stderr


def test_layers_load_and_rebuilds(networks, tmp_path):
    result = nm2trt_inline(
        "profile", networks / "sparse", "--batch", "4", "--duration", "0.3", "--rebuilds", "2", "--streams", "2",
        "--backend", "onnxruntime", "-o", tmp_path / "r",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    document = json.loads((tmp_path / "r" / "report.json").read_text())
    assert len(document["batches"][0]["build_ratios"]) == 2
    assert document["layers"]["weighted"] == 2
    assert document["layers"]["chosen"] == 0
    assert document["roofline"]["source"].startswith("measured here")
    assert len(document["load"]["points"]) == 6
    assert set(document["load"]["capacity_per_s"]) == {"dense", "sparse"}
    assert "--rebuilds 2" in document["command"]
    for wanted in ("under load, 2 streams", "no layer runs a sparse kernel", "no 2:4 kernels"):
        assert wanted in result.stdout


def test_the_schema_is_printed():
    result = nm2trt_inline("profile", "--schema")
    assert result.returncode == 0
    assert json.loads(result.stdout)["title"] == "nm2trt.report/2"
