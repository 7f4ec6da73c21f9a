"""From two inputs to a report document, on the real ONNX Runtime."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from small_networks import build_folder, small_network

from nm2trt.artifacts import ReportDocument
from nm2trt.errors import ConfigError, InputError, MachineError
from nm2trt.profile import choose_backend, profile, profile_config
from nm2trt.profile.runners.onnxruntime_runner import OnnxRuntimeRunner
from nm2trt.profile.source import read_source

QUICK = {"batches": "1,2", "duration_s": 0.2, "backend": "onnxruntime"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants")
    sparse = build_folder(folder / "sparse", small_network(sparse=True))
    dense = build_folder(folder / "dense", small_network(seed=1))
    return profile(sparse, profile_config(**QUICK), dense=dense)


def test_three_arms_at_every_batch(measured):
    assert [one.batch for one in measured.batches] == [1, 2]
    for one in measured.batches:
        assert [variant.name for variant in one.variants] == ["dense", "sparse", "sparse-repeat"]
        assert len({variant.calls for variant in one.variants}) == 1
        assert one.variants[0].calls == one.rounds * one.calls_per_round
        assert one.ratio.low <= one.ratio.value <= one.ratio.high
        assert all(0 < variant.median_ms <= variant.p90_ms <= variant.p99_ms for variant in one.variants)


def test_facts_come_from_the_build_or_from_this_run_never_from_hope(measured):
    facts = measured.facts
    assert (facts.legal.evidence, facts.eligible.evidence) == ("2 of 2 layers conform", "2 layers")
    if measured.runner.provider == "CPUExecutionProvider":
        assert facts.chosen.state.value == "disproved"
        assert "no 2:4 kernels" in measured.runner.note
    assert facts.faster.state.value != "proved"
    assert measured.headline in facts.faster.evidence


def test_document_round_trip(measured, tmp_path):
    measured.write(tmp_path)
    assert ReportDocument.read(tmp_path) == measured
    assert json.loads((tmp_path / "report.json").read_text())["schema"] == "nm2trt.report/2"


def test_document_holds_no_path_of_this_machine(measured):
    assert "/tmp" not in measured.to_json()
    assert measured.command.startswith("nm2trt profile sparse --dense dense --backend onnxruntime --batch 1,2 ")


def test_without_a_dense_network_the_zeros_are_filled_and_the_report_says_so(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(small_network(sparse=True), path)
    report = profile(path, profile_config(**QUICK))
    assert report.dense.kind == "filled"
    assert "timing only" in report.dense.note
    assert report.dense.zero_share == 0
    assert 0.45 < report.sparse.zero_share < 0.55
    assert report.facts.legal.state.value == "unknown"


def test_remarks_warn_of_noise(measured):
    batch = measured.batches[0].model_copy(
        update={"noise_floor": 0.3, "steady": False, "device_before": None, "device_after": None}
    )
    remarks = measured.model_copy(update={"batches": [batch]}).remarks()
    assert len(remarks) == 2
    assert "5 % at batch 1" in remarks[0]
    calm = batch.model_copy(update={"noise_floor": 0.01, "steady": True})
    assert measured.model_copy(update={"batches": [calm]}).remarks() == []


def test_changed_onnx_is_refused(tmp_path):
    folder = build_folder(tmp_path / "b", small_network(sparse=True))
    onnx.save(small_network(seed=9), folder / "model.onnx")
    with pytest.raises(InputError, match=r"sha256 .* the file was changed"):
        read_source(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(InputError, match="missing"):
        read_source(folder)


def test_bare_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no build\.json here"):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [({"batch": 4}, 1, "fixed batch of 4, not 1; use --batch 4"), ({"width": "W"}, 1, "dynamic dimensions .* W, W")],
)
def test_shapes_that_cannot_be_fed(options, batch, message):
    runner = OnnxRuntimeRunner(small_network(**options), name="net")
    with pytest.raises(InputError, match=message):
        runner.prepare(batch)
    runner.close()


def test_runner_runs_the_network_it_was_given():
    model = small_network(seed=3)
    runner = OnnxRuntimeRunner(model, name="net", seed=11)
    runner.prepare(5)
    assert runner.run_once() > 0
    x_NCHW = np.random.default_rng(11).standard_normal((5, 4, 6, 6)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x_NCHW})
    np.testing.assert_allclose(runner._binding.copy_outputs_to_cpu()[0], expected, rtol=1e-4, atol=1e-5)
    runner.close()
    runner.close()


def test_a_network_that_onnxruntime_cannot_open():
    model = small_network()
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(InputError, match=r"ONNX Runtime cannot open it.*NoSuchOperator"):
        OnnxRuntimeRunner(model, name="net")


def test_tensorrt_says_what_is_missing():
    with pytest.raises(MachineError, match="tensorrt"):
        choose_backend("tensorrt")
    backend, reason = choose_backend("auto")
    assert backend == "onnxruntime"
    assert reason.startswith("auto picked onnxruntime")


def test_every_wrong_option_is_named():
    with pytest.raises(ConfigError) as caught:
        profile_config(batches="0,-1,x,4,,999999999999", duration_s=-1.0, seed=-3, backend="gpu")
    for fragment in ("--batch: '0', '-1', 'x', '', '999999999999'", "--duration", "--seed", "--backend", "-3", "gpu"):
        assert fragment in str(caught.value)
    assert "'4'" not in str(caught.value)


def test_batches_are_measured_once_each():
    assert profile_config(batches=" 8, 1,8").batches == (8, 1)


def test_probing_for_cuda_is_silent():
    script = "from nm2trt.profile.runners.onnxruntime_providers import best_device; print(best_device())"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() in ("cpu", "cuda")
    assert result.stderr == ""
