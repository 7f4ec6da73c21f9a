"""`nm2trt verify` as a user runs it."""

import json
import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from helpers import assert_one_error_line, nm2trt
from onnx import helper, numpy_helper
from safetensors.numpy import save, save_file

from nm2trt.layers import METHOD_KEY, PATTERNS_KEY
from nm2trt.pattern import NMPattern, mask


def sparse(shape, pattern="2:4", dtype=np.float32):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return (weight * mask(weight, NMPattern.parse(pattern), 1)).astype(dtype)


def checkpoint(path, *, metadata=None, **tensors):
    save_file({name.replace("__", "."): value for name, value in tensors.items()}, path, metadata=metadata)
    return path


def onnx_file(path, weight):
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "features.weight"], ["y"], name="/features/Conv")],
        "g",
        [helper.make_tensor_value_info("x", 10, None)],
        [helper.make_tensor_value_info("y", 10, None)],
        [numpy_helper.from_array(weight, "features.weight")],
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@pytest.fixture
def good(tmp_path):
    return checkpoint(
        tmp_path / "good.safetensors",
        conv__weight=sparse((8, 16, 3, 3)),
        fc__weight=np.ones((4, 8), np.float32),
        fc__bias=np.ones(4, np.float32),
    )


def test_table_and_summary(good):
    result = nm2trt("verify", good)
    assert result.returncode == 0
    assert result.stderr == ""
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.split()}
    assert "conforms" in rows["conv.weight"]
    assert "8x16x3x3" in rows["conv.weight"]
    assert "dense" in rows["fc.weight"]
    assert list(rows).index("fc.weight") < list(rows).index("conv.weight"), "worst first"
    assert rows["PASS"].startswith(f"PASS {good}: 1 of 2 prunable layers conform to 2:4 (97.3 % of their weights)")


def test_json_is_one_document_and_nothing_else(good):
    result = nm2trt("verify", good, "--json")
    document = json.loads(result.stdout)
    assert (result.returncode, result.stderr) == (0, "")
    assert (document["schema"], document["verdict"], document["pattern"]) == ("nm2trt.verify/1", "pass", "2:4")
    many = json.loads(nm2trt("verify", good, good, "--json", "--strict").stdout)
    assert (many["schema"], many["verdict"], len(many["files"])) == ("nm2trt.verify-many/1", "fail", 2)


def test_a_bad_verdict_is_exit_1_and_names_the_group(tmp_path):
    weight = sparse((8, 16, 3, 3), dtype=np.float16)
    weight[3, 8:12, 1, 0] = (1, 2, 3, 0)
    result = nm2trt("verify", onnx_file(tmp_path / "bad.onnx", weight))
    assert result.returncode == 1
    assert "first broken group [3, 8:12, 1, 0] = (1, 2, 3, 0)" in result.stdout
    assert "FAIL" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("options", "exit_code"),
    [
        ((), 0),
        (("--strict",), 1),
        (("--strict", "--exclude", "fc"), 0),
        (("--require", "conv*"), 0),
        (("--require", "fc*"), 1),
        (("--require", "gone"), 1),
        (("--pattern", "1:4"), 1),
        (("--pattern", "1:4", "--layer", "conv*=2:4"), 0),
        (("--pattern", "3:4"), 0),
    ],
)
def test_options_and_exit_codes(good, options, exit_code):
    assert nm2trt("verify", good, *options).returncode == exit_code


def test_patterns_in_the_file_are_used_unless_the_user_names_one(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    checkpoint(
        run / "checkpoint.safetensors",
        metadata={PATTERNS_KEY: '{"a.weight": "1:4", "b.weight": "2:8"}', METHOD_KEY: "sr-ste"},
        a__weight=sparse((8, 16), "1:4"),
        b__weight=sparse((8, 16), "2:8"),
        c__weight=np.ones((8, 16), np.float32),
    )
    result = nm2trt("verify", run, "--json")
    document = json.loads(result.stdout)
    assert (result.returncode, document["method"]) == (0, "sr-ste")
    assert [layer["pattern"] for layer in document["layers"]][:2] == ["1:4", "2:8"]
    assert document["layers"][2]["note"] == "left dense on purpose"
    forced = nm2trt("verify", run, "--json", "--pattern", "1:4")
    assert forced.returncode == 1
    assert {layer["pattern"] for layer in json.loads(forced.stdout)["layers"]} == {"1:4"}


@pytest.mark.parametrize("pattern", ["4:2", "2:3:4", "0:4", "two:four"])
def test_bad_patterns(good, pattern):
    assert_one_error_line(nm2trt("verify", good, "--pattern", pattern), 2, pattern)
    assert_one_error_line(nm2trt("verify", good, "--layer", f"conv*={pattern}"), 2, pattern)


def test_bad_layer_option(good):
    assert_one_error_line(nm2trt("verify", good, "--layer", "conv*"), 2, "GLOB=N:M")


def test_files_that_cannot_be_used(tmp_path):
    whole = save({"w.weight": np.zeros((8, 8), np.float32)})
    (tmp_path / "cut.safetensors").write_bytes(whole[:-3])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "text.onnx").write_text("this is no model")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    for name, words in (
        ("gone.safetensors", "no such file or folder"),
        ("cut.safetensors", "no complete safetensors file"),
        ("empty.safetensors", "no complete safetensors file"),
        ("text.onnx", "no ONNX model"),
        ("run", "without checkpoint.safetensors"),
    ):
        assert_one_error_line(nm2trt("verify", tmp_path / name), 3, name, words)
        assert_one_error_line(nm2trt("verify", tmp_path / name, "--json"), 3, name)


def test_names_cannot_steer_the_terminal(tmp_path):
    path = tmp_path / "odd.safetensors"
    save_file({"[red]x[/red]\x1b[2J\n.weight": sparse((8, 8))}, path)
    result = nm2trt("verify", path)
    assert result.returncode == 0
    assert "\x1b" not in result.stdout
    assert "[red]x[/red]\\x1b[2J\\n.weight" in result.stdout


def test_help_names_every_option():
    result = nm2trt("verify", "--help")
    assert result.returncode == 0
    for option in ("--pattern", "--layer", "--exclude", "--require", "--strict", "--junit", "--plot", "--json"):
        assert option in result.stdout


def test_auto(tmp_path):
    path = checkpoint(tmp_path / "m.safetensors", a__weight=sparse((8, 64), "1:16"), b__weight=sparse((8, 64), "2:8"))
    result = nm2trt("verify", path, "--pattern", "auto", "--json")
    document = json.loads(result.stdout)
    assert (result.returncode, document["pattern"]) == (0, "auto")
    assert {layer["name"]: layer["pattern"] for layer in document["layers"]} == {"a.weight": "1:16", "b.weight": "2:8"}


def test_junit(good, tmp_path):
    weight = sparse((8, 16, 3, 3))
    weight[0, :4] = 7
    bad = checkpoint(tmp_path / "bad.safetensors", **{"odd\x1b<&>name.weight": weight})
    report = tmp_path / "report.xml"
    assert nm2trt("verify", good, bad, "--junit", report).returncode == 1
    passed, failed = ET.parse(report).getroot()
    assert (passed.get("name"), passed.get("tests"), passed.get("failures")) == (str(good), "3", "0")
    assert (failed.get("tests"), failed.get("failures")) == ("2", "2")
    (failure,) = failed[0]
    assert failed[0].get("name") == "odd\\x1b<&>name.weight"
    assert failure.get("type") == "violates"
    assert "[0, 0:4, 0, 0] = (7, 7, 7, 7)" in failure.text
    # An older report may be replaced, nothing else.
    assert nm2trt("verify", good, "--junit", report).returncode == 0
    before = bad.read_bytes()
    assert_one_error_line(nm2trt("verify", good, "--junit", bad), 2, "no JUnit report")
    assert_one_error_line(nm2trt("verify", good, "--junit", tmp_path), 2, "is a folder")
    assert_one_error_line(
        nm2trt("verify", good, "--junit", tmp_path / "gone" / "r.xml"), 2, "parent directory does not exist"
    )
    assert bad.read_bytes() == before


def test_plot(good, tmp_path):
    picture = tmp_path / "zeros.png"
    result = nm2trt("verify", good, "--plot", picture)
    assert (result.returncode, result.stderr) == (0, "")
    before = picture.read_bytes()
    assert before.startswith(b"\x89PNG")
    # An older picture may be replaced, nothing else.
    assert nm2trt("verify", good, "--plot", picture, "--json").returncode == 0
    assert_one_error_line(nm2trt("verify", good, good, "--plot", picture), 2, "draws one PATH")
    assert_one_error_line(nm2trt("verify", good, "--plot", good), 2, "no .png")
    assert_one_error_line(
        nm2trt("verify", good, "--plot", tmp_path / "gone" / "f.png"), 2, "parent directory does not exist"
    )
    (tmp_path / "text.png").write_text("mine")
    assert_one_error_line(nm2trt("verify", good, "--plot", tmp_path / "text.png"), 2, "is no PNG")
    assert (tmp_path / "text.png").read_text() == "mine"


def test_the_terminals_table_holds_what_the_logs_table_holds(good, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    log = nm2trt("verify", good).stdout
    monkeypatch.setenv("FORCE_COLOR", "1")
    colored = nm2trt("verify", good).stdout
    assert "\x1b[" in colored
    assert "\x1b[" not in log
    terminal = re.sub(r"\x1b\[[0-9;]*m", "", colored)
    words = [line.split() for line in log.splitlines() if line.strip() and "─" not in line]
    assert words == [line.split() for line in terminal.splitlines() if line.strip() and "─" not in line]
