"""`nm2trt compare ESTIMATE REPORT`: how far the estimate was off, and what else differs."""

import json

import pytest
from helpers import assert_one_error_line, nm2trt_inline
from profile_reports import report_document
from test_cli_estimate import network

from nm2trt.artifacts.ratio import RatioRecord
from nm2trt.artifacts.report_layers import LayersRecord, LayerTimeRecord


def measured(estimate, *, dense=1.0, sparse=1.0, ratio=None, batch=32, backend="tensorrt", provider=None, chosen=True):
    """A report whose times are those of the estimate times a factor."""
    report = report_document()
    value = ratio or estimate["speedup"]["value"] * dense / sparse
    batches = []
    for record in report.batches:
        times = {"dense": dense * estimate["dense_ms"]["value"], "sparse": sparse * estimate["sparse_ms"]["value"]}
        variants = [
            variant.model_copy(update={"median_ms": times.get(variant.name, variant.median_ms)})
            for variant in record.variants
        ]
        changed = RatioRecord(value=value, low=value - 0.01, high=value + 0.01)
        batches.append(record.model_copy(update={"variants": tuple(variants), "ratio": changed}))
    layers = [
        LayerTimeRecord(
            name=layer["weight"] or layer["name"],
            type="Conv",
            onnx_nodes=(layer["name"],),
            dense_ms=dense * layer["dense_us"]["value"] / 1e3,
            sparse_ms=sparse * (layer["sparse_us"] or layer["dense_us"])["value"] / 1e3,
            share=layer["share"],
            weighted=bool(layer["weight"]),
            chosen=bool(layer["sparse_us"]) and chosen,
        )
        for layer in estimate["layers"]
        if layer["name"] != "fc"
    ]
    record = LayersRecord(
        batch=batch,
        source="made up",
        calls=50,
        layers=tuple(layers),
        dense_ms=1.0,
        sparse_ms=1.0,
        weighted=2,
        eligible=1,
        chosen=1,
        sentence="",
    )
    runner = report.runner.model_copy(
        update={"backend": backend, "provider": provider or "NVIDIA A100 80GB PCIe", "threads": None}
    )
    return report.model_copy(update={"batches": batches, "layers": record, "runner": runner, "precision": "fp16"})


@pytest.fixture
def estimate(tmp_path):
    found = nm2trt_inline("estimate", network(tmp_path / "m.onnx"), "--gpu", "a100-pcie-80gb", "--batch", 32, "--json")
    path = tmp_path / "estimate.json"
    path.write_text(found.stdout)
    return path


def compare(folder, estimate, *, turned=False, **changes):
    report = measured(json.loads(estimate.read_text()), **changes)
    folder = folder / "report"
    folder.mkdir()
    report.write(folder)
    pair = (folder / "report.json", estimate) if turned else (estimate, folder)
    found = json.loads(nm2trt_inline("compare", *pair, "--json").stdout)
    return found, nm2trt_inline("compare", *pair).stdout


@pytest.mark.parametrize("turned", [False, True])
def test_an_estimate_that_was_right(turned, tmp_path, estimate):
    found, text = compare(tmp_path, estimate, turned=turned)
    assert found["schema"] == "nm2trt.estimate-comparison/1"
    assert [one["what"] for one in found["totals"]] == ["dense_ms", "sparse_ms", "ratio"]
    assert {one["finding"] for one in found["totals"]} == {"inside"}
    assert found["mismatches"] == []
    assert found["unmatched"] == ["fc.weight"]
    layers = {layer["name"]: layer for layer in found["layers"]}
    wide = layers["wide.weight"]
    assert (wide["m"], wide["n"], wide["k"]) == (32 * 256, 256, 2304)
    assert wide["sparse"]["finding"] == "inside"
    assert (wide["expected"], wide["chosen"]) == (True, True)
    assert layers["odd.weight"]["sparse"] is None
    assert "+0 %" in text
    assert "1 layers of the estimate are not in the report by name" in text
    assert "differs" not in text


def test_an_estimate_that_was_wrong_says_by_how_much(tmp_path, estimate):
    found, text = compare(tmp_path, estimate, dense=2.0, sparse=0.5)
    totals = {one["what"]: one for one in found["totals"]}
    assert (totals["dense_ms"]["finding"], totals["sparse_ms"]["finding"]) == ("above", "below")
    assert totals["ratio"]["finding"] == "above"
    assert totals["ratio"]["measured"] == pytest.approx(4 * totals["ratio"]["estimated"]["value"])
    assert "-50 %" in text
    assert "+100 %" in text
    assert "0 of 3 in the range" in text


def test_a_sparse_kernel_that_did_not_run_is_counted(tmp_path, estimate):
    found, text = compare(tmp_path, estimate, chosen=False)
    assert all(layer["sparse"] is None for layer in found["layers"])
    assert "expected, did not run" in text
    assert "right for 1 of 2 layers" in text


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"provider": "NVIDIA L4"}, "gpu"), ({"backend": "onnxruntime", "provider": "CPUExecutionProvider"}, "backend")],
)
def test_what_else_differs_is_said(changes, what, tmp_path, estimate):
    found, text = compare(tmp_path, estimate, **changes)
    assert what in {one["what"] for one in found["mismatches"]}
    assert "not the estimate's alone" in text


def test_a_report_that_profile_wrote_is_compared(tmp_path, estimate):
    # Times of layers as somebody measured them: no part of this report is made up here.
    table = tmp_path / "times.csv"
    table.write_text(
        "layer,dense_engine_ms,sparse_engine_ms,sparse_kernel_chosen\nwide,0.0800,0.0640,1\nodd,0.0120,0.0121,0\n"
    )
    report = tmp_path / "report"
    profiled = nm2trt_inline(
        "profile", tmp_path / "m.onnx", "--layer-times", table, "--batch", 32, "-o", report, "--quiet"
    )
    assert profiled.returncode == 0
    found = json.loads(nm2trt_inline("compare", estimate, report, "--json").stdout)
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert (layers["wide.weight"]["dense"]["measured"], layers["wide.weight"]["sparse"]["measured"]) == (80.0, 64.0)
    assert layers["odd.weight"]["chosen"] is False
    assert found["totals"] == []
    assert "wide.weight" in nm2trt_inline("compare", estimate, report).stdout


def test_mistakes_are_one_line(tmp_path, estimate):
    (tmp_path / "empty").mkdir()
    assert_one_error_line(nm2trt_inline("compare", estimate, tmp_path / "empty"), 3, "no report.json here")
    raw = json.loads(estimate.read_text())
    report = measured(raw, batch=16)
    (tmp_path / "report").mkdir()
    report.write(tmp_path / "report")
    raw["inputs"] = {"x": [5, 6, 16, 16]}
    estimate.write_text(json.dumps(raw))
    assert_one_error_line(
        nm2trt_inline("compare", estimate, tmp_path / "report"),
        3,
        "the estimate is for batch 5, the report has 1, 8, 32",
    )
    del raw["speedup"]
    estimate.write_text(json.dumps(raw))
    assert_one_error_line(nm2trt_inline("compare", estimate, tmp_path / "report"), 3, "speedup: Field required")
    estimate.write_text("{}")
    assert_one_error_line(nm2trt_inline("compare", estimate, tmp_path / "report"), 3, "is a file, not a folder")
