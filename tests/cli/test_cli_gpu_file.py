"""`nm2trt estimate --gpu-file GPU.json` with a record of `nm2trt benchmark-gpu`; `--from`; the page's tables."""

import json
import subprocess
import sys

import pytest
from helpers import REPOSITORY, assert_one_error_line, nm2trt, nm2trt_inline
from product_nets import onnx_net

RECORD = REPOSITORY / "docs" / "gpu-h200.json"


def estimate(path, *arguments):
    return nm2trt_inline("estimate", path, "--batch", "8", "--assume", "2:4", *arguments)


def test_the_fitted_constants_replace_the_packages_and_the_output_says_whose_they_are(tmp_path):
    onnx_net(tmp_path / "net.onnx")
    result = estimate(tmp_path / "net.onnx", "--gpu-file", RECORD, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["gpu_name"] == "NVIDIA H200"
    assert "not TensorRT's" in found["constants"]["kernels"]
    assert any("fitted on NVIDIA H200" in note for note in found["notes"])
    assert any("TensorRT's kernels" in one for one in found["outside_data"])
    own = json.loads(estimate(tmp_path / "net.onnx", "--gpu", "h200", "--json").stdout)
    assert own["constants"]["layers"].startswith("173 layers")
    assert found["dense_ms"]["value"] != own["dense_ms"]["value"]
    text = estimate(tmp_path / "net.onnx", "--gpu-file", RECORD)
    assert "not TensorRT's" in text.stdout


def test_bf16_was_measured_there_and_is_no_longer_outside(tmp_path):
    onnx_net(tmp_path / "net.onnx")
    found = json.loads(estimate(tmp_path / "net.onnx", "--gpu-file", RECORD, "--precision", "bf16", "--json").stdout)
    assert not any("bf16" in one for one in found["outside_data"])
    own = json.loads(estimate(tmp_path / "net.onnx", "--gpu", "h200", "--precision", "bf16", "--json").stdout)
    assert any("bf16" in one for one in own["outside_data"])


def test_a_record_without_a_fit_gives_the_gpu_alone(tmp_path):
    onnx_net(tmp_path / "net.onnx")
    record = json.loads(RECORD.read_text())
    record["constants"] = None
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    found = json.loads(estimate(tmp_path / "net.onnx", "--gpu-file", tmp_path / "gpu.json", "--json").stdout)
    assert found["constants"]["layers"].startswith("173 layers")
    assert found["gpu_name"] == "NVIDIA H200"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record["constants"].pop("efficiency"), "constants: efficiency"),
        (lambda record: record["gpu"].update(sms=0), "sms"),
        (lambda record: record.pop("gpu"), "no-gpu"),
    ],
)
def test_a_broken_record_is_told_in_a_line(tmp_path, change, words):
    onnx_net(tmp_path / "net.onnx")
    record = json.loads(RECORD.read_text())
    change(record)
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    result = estimate(tmp_path / "net.onnx", "--gpu-file", tmp_path / "gpu.json")
    assert_one_error_line(result, 3, "gpu.json", *(() if words == "no-gpu" else (words,)))


def test_from_fits_anew_and_refuses_other_files(tmp_path):
    few = json.loads(RECORD.read_text())
    few["points"] = few["points"][:20]
    (tmp_path / "old.json").write_text(json.dumps(few))
    result = nm2trt_inline("benchmark-gpu", "--from", tmp_path / "old.json", "-o", tmp_path / "new.json", "--json")
    assert result.returncode == 0, result.stderr
    new = json.loads(result.stdout)
    assert new["points"] == few["points"]
    assert new["constants"] != few["constants"]
    assert "20 products" in new["constants"]["provenance"]["products"]
    assert (tmp_path / "new.png").is_file()
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "none.json"):
        result = nm2trt_inline("benchmark-gpu", "--from", tmp_path / name, "-o", tmp_path / "again.json")
        assert_one_error_line(result, 3, name, "benchmark-gpu")
    assert not (tmp_path / "again.json").exists()


def test_the_commands_of_make_gpu_can_be_listed_anywhere(tmp_path):
    result = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks" / "gpu.py", "--dry-run", "-o", tmp_path / "gpu"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    for words in ("pytest -m gpu", "train_step_gpu.py", "benchmark-gpu -o", "--backend torch-sparse", "BertModel"):
        assert words in result.stdout
    assert "attention_mask" not in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_page_prints_the_records_tables(tmp_path):
    result = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks" / "gpu_page.py", tmp_path, "--gpu-file", RECORD],
        capture_output=True,
        text=True,
        check=True,
    )
    page = (REPOSITORY / "docs" / "gpu-h200.md").read_text()
    rows = [
        line for line in result.stdout.splitlines() if line.startswith(("| fp16", "| bf16", "| int8", "fp16:", "int8:"))
    ]
    assert len(rows) == 8
    for row in rows:
        assert row in page


def test_doctor_tells_of_torchs_backends():
    document = json.loads(nm2trt("doctor", "--json").stdout)
    (line,) = [one for one in document["findings"] if one["name"] == "torch 2:4 kernels"]
    assert "CUTLASS" in line["detail"]
    assert line["present"] or "no GPU" in line["detail"] or "none" in line["detail"]
