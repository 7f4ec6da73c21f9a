import json

import pytest
from helpers import assert_one_error_line, nm2trt_inline
from serve_builds import everything, make_build


def test_one_document_on_stdout(tmp_path):
    build = make_build(tmp_path / "build", builder="tensorrt")
    result = nm2trt_inline("package", build, "-o", tmp_path / "repo", "--name", "net", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["schema"] == "nm2trt.packages/1"
    (model,) = document["models"]
    assert model == json.loads((tmp_path / "repo/net/package.json").read_text())
    assert document["files"] == ["Dockerfile", "compose.yaml"]


def test_what_a_plan_needs_is_printed(tmp_path):
    build = make_build(tmp_path / "build", builder="tensorrt")
    result = nm2trt_inline("package", build, "-o", tmp_path / "repo", "--name", "net")
    assert "net version 1" in result.stdout
    assert "model.plan: needs TensorRT 10.13.3.9, SM 80" in result.stdout
    assert "batches up to 64, 500 us queue delay" in result.stdout


def test_auto_says_why_it_took_the_onnx(tmp_path):
    build = make_build(tmp_path / "build", builder="tensorrt-rtx")
    result = nm2trt_inline("package", build, "-o", tmp_path / "repo")
    assert "onnxruntime (the build holds no plan of full TensorRT)" in result.stdout


def test_a_name_is_made_of_what_was_trained(tmp_path):
    nm2trt_inline("package", make_build(tmp_path / "my build"), "-o", tmp_path / "repo")
    assert (tmp_path / "repo/my-build").is_dir()


@pytest.mark.parametrize("server", ["deepstream", "onnxruntime"])
def test_a_folder_is_replaced_only_with_force(tmp_path, server):
    build = make_build(tmp_path / "build")
    document = json.loads((build / "build.json").read_text())
    document["inputs"][0]["shape"] = ["N", 3, 6, 6]
    (build / "build.json").write_text(json.dumps(document))
    arguments = ("package", build, "--server", server, "-o", tmp_path / "out", "--name", "net")
    assert nm2trt_inline(*arguments).returncode == 0
    before = everything(tmp_path / "out")
    assert_one_error_line(nm2trt_inline(*arguments), 2, "the output folder exists")
    assert everything(tmp_path / "out") == before
    assert nm2trt_inline(*arguments, "--force").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("package", "BUILD", "-o", "OUT", "--max-batch", "65"), 2, "65 is outside 1..64"),
        (("package", "BUILD", "-o", "OUT", "--sm", "80"), 2, "--sm: states what a plan is for"),
        (("package", "BUILD", "BUILD", "-o", "OUT"), 2, "name one build"),
        (("package", "nowhere", "-o", "OUT", "--name", "net"), 3, "no build.json"),
        (("package", "BUILD", "-o", "OUT", "--platform", "tensorrt_plan"), 3, "holds no sparse plan"),
        (("package", "BUILD", "BUILD", "--server", "onnxruntime", "-o", "OUT"), 2, "takes one BUILD"),
        (("serve", "nowhere"), 3, "no such folder"),
        (("serve", "BUILD"), 3, "holds no model"),
        (("check-server", "ftp://a", "net", "--build", "BUILD"), 2, "no http://HOST:PORT"),
        (("check-server", "http://127.0.0.1:9", "net", "--build", "nowhere"), 3, "no build.json"),
        (("check-server", "http://127.0.0.1:9", "net", "--build", "BUILD"), 3, "The server did not answer: "),
        (
            ("check-server", "http://127.0.0.1:9", "net", "--build", "BUILD", "-o", "BUILD", "--force"),
            3,
            "The server did not answer: ",
        ),
        (("check-server", "http://127.0.0.1:9", "net", "--build", "BUILD", "-o", "BUILD"), 2, "output folder exists"),
    ],
)
def test_a_mistake_costs_one_line(tmp_path, monkeypatch, arguments, code, words):
    build = make_build(tmp_path / "build")
    before = everything(tmp_path)
    places = {"BUILD": build, "OUT": tmp_path / "out", "nowhere": tmp_path / "nowhere"}
    result = nm2trt_inline(*(places.get(one, one) for one in arguments))
    assert_one_error_line(result, code, words)
    assert everything(tmp_path) == before
