"""`nm2trt compare` as a user runs it."""

import json

import pytest
from helpers import assert_one_error_line, nm2trt_inline
from profile_reports import full_report

from nm2trt.artifacts.ratio import RatioRecord


def changed(report, *, value, precision="fp32"):
    ratio = RatioRecord(value=value, low=value - 0.005, high=value + 0.005)
    batches = [one.model_copy(update={"ratio": ratio, "finding": "sparse-faster"}) for one in report.batches]
    return report.model_copy(update={"batches": batches, "precision": precision})


@pytest.fixture
def reports(tmp_path):
    report = full_report()
    for name, one in (("a", report), ("same", report), ("better", changed(report, value=1.3, precision="fp16"))):
        (tmp_path / name).mkdir()
        one.write(tmp_path / name)
    return tmp_path


def test_equal_reports_agree(reports):
    result = nm2trt_inline("compare", reports / "a", reports / "same" / "report.json")
    assert result.returncode == 0, result.stderr
    assert "At every shared batch size: no difference beyond the noise." in result.stdout
    assert "what differs" not in result.stdout


def test_a_larger_gain_is_told_and_what_else_differs(reports):
    result = nm2trt_inline("compare", reports / "a", reports / "better", "--json")
    document = json.loads(result.stdout)
    assert document["schema"] == "nm2trt.comparison/1"
    assert {row["finding"] for row in document["batches"]} == {"B gains more"}
    assert [one["what"] for one in document["differences"]] == ["precision"]
    assert "different conditions" in document["notes"][0]
    assert len(document["layers"]) == 12
    text = nm2trt_inline("compare", reports / "a", reports / "better").stdout
    for wanted in ("what differs", "fp16", "B gains more", "layers that differ most"):
        assert wanted in text


def test_what_is_no_report_is_named(reports):
    (reports / "empty").mkdir()
    assert_one_error_line(nm2trt_inline("compare", reports / "a", reports / "empty"), 3, "no report.json here")
    other = full_report().model_copy(update={"batches": [], "layers": None})
    (reports / "bare").mkdir()
    other.write(reports / "bare")
    assert_one_error_line(nm2trt_inline("compare", reports / "a", reports / "bare"), 3, "share neither")
