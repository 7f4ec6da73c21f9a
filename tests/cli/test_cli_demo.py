import json
import os
import signal
import subprocess
import time
from html.parser import HTMLParser

import pytest
from helpers import assert_one_error_line, forked_python, missing_requirements, nm2trt, nm2trt_inline

QUICK = ("--seeds", 1, "--epochs", 3, "--duration", 0.3)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, nm2trt("demo", *QUICK, "-o", folder)


def test_it_ends_with_the_table_and_the_report(demo):
    folder, result = demo
    # So short a training may miss the accuracy gate; that is exit 1, said in one line, with everything written.
    assert result.returncode in (0, 1), result.stderr
    if result.returncode == 1:
        assert "more than 1 point below" in result.stderr
    for what in ("accuracy, dense", "accuracy, SR-STE", "SAD", "layers that conform", "ONNX error", "engines compiled"):
        assert what in result.stdout
    assert "dense / sparse, batch 32" in result.stdout
    assert str(folder / "report.html") in result.stdout


def test_the_folder_holds_every_stage(demo):
    folder, _ = demo
    for name in (
        "report.html",
        "demo.json",
        "runs/dense-0/checkpoint.safetensors",
        "runs/sr-ste-0/run.json",
        "builds/sparse-fp16/model.onnx",
        "builds/sparse-fp16/build.json",
        "builds/dense-fp32/build.json",
        "profile/report.json",
    ):
        assert (folder / name).is_file(), name
    document = json.loads((folder / "demo.json").read_text())
    rows = {row["what"]: row["value"] for row in document["rows"]}
    assert rows["layers that conform"] == "8 of 8"
    for row in document["rows"]:
        assert list(folder.glob(row["source"])), row["source"]
    assert rows["engines compiled"] == ("0 of 0" if missing_requirements(rtx=True) else "2 of 2")
    accuracy = json.loads((folder / "runs/sr-ste-0/run.json").read_text())["result"]["test_score"]
    assert rows["accuracy, SR-STE"] == f"{accuracy:.2%}"


def test_no_fact_is_claimed_that_this_machine_cannot_see(demo):
    folder, result = demo
    facts = json.loads((folder / "demo.json").read_text())["facts"]
    assert facts["legal"]["state"] == "proved"
    assert facts["eligible"]["state"] == "proved"
    if missing_requirements(gpu=True):
        assert facts["chosen"]["state"] == "unknown"
        assert facts["faster"]["state"] == "unknown"
        assert "faster cannot be seen on this machine" in (folder / "report.html").read_text() or result.returncode == 1


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def test_the_report_opens_offline(demo):
    folder, _ = demo
    links = Links()
    links.feed((folder / "report.html").read_text())
    assert [link for link in links.found if not link.startswith(("#", "data:"))] == []


def test_the_printed_commands_are_real(demo):
    folder, _ = demo
    document = json.loads((folder / "demo.json").read_text())
    assert len(document["commands"]) == 7
    for line in document["commands"]:
        program, name, *_ = line.split()
        assert program == "nm2trt"
        known = nm2trt_inline(name, "--help").stdout.replace(",", " ").split()
        assert {option for option in line.split() if option.startswith("--")} <= set(known)


def test_mistakes_come_before_any_training(tmp_path):
    result = nm2trt_inline("demo", "--data", "nope", "--pattern", "0:4", "-o", tmp_path / "d")
    assert_one_error_line(result, 2, "2 mistakes", "unknown data set 'nope'", "0:4 keeps 0")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").write_text("x")
    assert_one_error_line(nm2trt_inline("demo", "-o", tmp_path / "d"), 2, "exists")


def test_a_terminated_demo_leaves_nothing(tmp_path):
    python, environment = forked_python(os.environ)
    process = subprocess.Popen(
        [python, "-m", "nm2trt", "demo", "-o", str(tmp_path / "d")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert any(tmp_path.iterdir()), "the demo never started"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
