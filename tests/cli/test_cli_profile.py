"""`nm2trt profile` as a user runs it."""

import json

import onnx
import pytest
from helpers import assert_one_error_line, nm2trt
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
    for fragment in ("median ms", "p99 ms", "sparse-again", "batch 2: ", "report.html"):
        assert fragment in result.stdout
    assert "backend: auto picked onnxruntime" in result.stderr
    document = json.loads((report / "report.json").read_text())
    assert document["headline"] in result.stdout
    assert document["runner"]["note"] in result.stdout
    assert document["headline"] in (report / "report.html").read_text()
    # Nothing may call it a gain of sparsity.
    assert "speed-up" not in result.stdout + (report / "report.html").read_text()


def test_json_is_one_document_and_nothing_else(networks, tmp_path):
    result = nm2trt("profile", networks / "sparse", *QUICK, "--json", "-o", tmp_path / "r")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "r" / "report.json").read_text())
    assert document["schema"] == "nm2trt.report/2"
    assert document["dense"]["kind"] == "filled"


def test_every_wrong_option_at_once(networks, tmp_path):
    result = nm2trt(
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
    result = nm2trt("profile", networks / source, *options, *QUICK, "-o", tmp_path / "r")
    assert_one_error_line(result, 3, *fragments)
    assert list(tmp_path.iterdir()) == []


def test_tensorrt_without_tensorrt(networks, tmp_path):
    result = nm2trt("profile", networks / "sparse", "--backend", "tensorrt", *QUICK, "-o", tmp_path / "r")
    assert_one_error_line(result, 4, "--backend tensorrt")
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_kept_unless_forced(networks, tmp_path):
    output = tmp_path / "r"
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    assert_one_error_line(nm2trt("profile", networks / "sparse", *QUICK, "-o", output), 2, "exists", "--force")
    forced = nm2trt("profile", networks / "sparse", *QUICK, "-o", output, "--force")
    assert_one_error_line(forced, 2, "nm2trt did not write")
    assert (output / "thesis.txt").read_text() == "mine"
    (output / "thesis.txt").unlink()
    (output / "report.json").write_text("{}")
    assert nm2trt("profile", networks / "sparse", *QUICK, "-o", output, "--force").returncode == 0
    assert json.loads((output / "report.json").read_text())["schema"] == "nm2trt.report/2"
