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
        (("package", "BUILD", "-o", "OUT", "--name", ""), 2, "--name: model name ''"),
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


SERVERS = ("triton", "triton-cpu", "kserve", "deepstream", "onnxruntime")
# Written out by hand, and not read from the command's own table.
VALUES = {
    "--platform": ("onnxruntime", {"triton", "kserve"}),
    "--device": ("cpu", {"triton", "kserve"}),
    "--variant": ("sparse", set(SERVERS)),
    "--dense": ("BUILD", {"triton", "triton-cpu", "kserve"}),
    "--version": ("5", {"triton", "triton-cpu", "kserve"}),
    "--max-batch": ("4", {"triton", "triton-cpu", "kserve"}),
    "--queue-delay-us": ("9", {"triton", "triton-cpu", "kserve"}),
    "--instances": ("2", {"triton", "triton-cpu", "kserve"}),
    "--cuda-graphs": (None, set()),
    "--no-cuda-graphs": (None, set()),
    "--labels": ("LABELS", {"triton", "triton-cpu", "kserve", "deepstream"}),
    "--sm": ("80", set()),
    "--tensorrt": ("10.13.3.9", set()),
    "--image": ("r.example/t:1", {"triton", "triton-cpu", "kserve"}),
    "--storage-uri": ("s3://bucket/models", {"kserve"}),
    "--canary": ("10", {"kserve"}),
    "--scale": ("0.5", {"deepstream"}),
    "--keep-config": (None, {"triton", "triton-cpu", "kserve"}),
    "--force": (None, {"deepstream", "onnxruntime"}),
}
"""Option -> a value and the servers that take it for a build without a plan."""


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("option", sorted(VALUES))
def test_an_option_works_or_is_refused(tmp_path, server, option):
    build = make_build(tmp_path / "build")
    document = json.loads((build / "build.json").read_text())
    document["inputs"][0]["shape"] = ["N", 3, 6, 6]
    document["outputs"][0]["shape"] = ["N", 2]
    (build / "build.json").write_text(json.dumps(document))
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    value, servers = VALUES[option]
    words = (
        [option] if value is None else [option, {"BUILD": build, "LABELS": tmp_path / "labels.txt"}.get(value, value)]
    )
    if server == "kserve":
        words += [word for name in ("--image", "--storage-uri") if name != option for word in (name, VALUES[name][0])]
    result = nm2trt_inline("package", build, "--server", server, "-o", tmp_path / "out", "--name", "net", *words)
    if server in servers:
        assert result.returncode == 0, result.stderr
    else:
        assert_one_error_line(result, 2, option)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--instances", "0", "instances"),
        ("--instances", "-1", "instances"),
        ("--instances", "99999999999", "99999999999 is outside 1..1024"),
        ("--queue-delay-us", "-1", "queue-delay-us"),
        ("--queue-delay-us", "99999999999999999999", "is outside 0..60000000"),
        ("--version", "0", "version"),
        ("--version", "9223372036854775808", "Triton's largest version"),
        ("--max-batch", "-1", "max-batch"),
        ("--image", "a b", "no container image"),
        ("--image", "", "no container image"),
        ("--image", "x\nRUN evil", "no container image"),
    ],
)
def test_numbers_that_no_server_takes(tmp_path, option, value, words):
    build = make_build(tmp_path / "build")
    result = nm2trt_inline("package", build, "-o", tmp_path / "out", "--name", "net", option, value)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_for_plans_is_refused_by_name(tmp_path):
    build = make_build(tmp_path / "build", builder="tensorrt")
    result = nm2trt_inline("package", build, "-o", tmp_path / "out", "--name", "net", "--device", "cpu")
    assert_one_error_line(result, 2, "--device: is for onnxruntime, and tensorrt_plan is packaged here")
