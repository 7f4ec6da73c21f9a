"""`nm2trt export` as a user runs it; in this process where nothing depends on a process of its own."""

import errno
import hashlib
import json
import os
from types import SimpleNamespace

import onnx
import pytest
from helpers import assert_one_error_line, export_run, nm2trt, requires
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from run_folders import make_run, sparse_names

from nm2trt.artifacts import BuildDocument, FactState
from nm2trt.cli import main
from nm2trt.errors import ConfigError
from nm2trt.pipelines.export import failures
from nm2trt.pipelines.export_config import ExportConfig, checked_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "sparse", "resnet8")
    make_run(folder / "dense", "mlp", sparse=False)
    make_run(folder / "mlp", "mlp")
    return folder


@pytest.fixture
def here(capfd):
    """Run a command in this process."""

    def run(*arguments):
        capfd.readouterr()
        code = main.run([*map(str, arguments)])
        out, err = capfd.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return run


def assert_untouched(folder):
    """Neither the target nor a hidden half of it."""
    assert [path.name for path in folder.iterdir()] == []


@requires(rtx=True)
def test_a_run_becomes_a_build_with_every_check(runs, tmp_path):
    result = nm2trt(
        "export", runs / "sparse", "-o", tmp_path / "build", "--precision", "fp16", "--builder", "tensorrt-rtx"
    )
    assert result.returncode == 0, result.stderr
    # Only the thread count is said there.
    assert [line for line in result.stderr.splitlines() if not line.startswith("CPU: ")] == []
    assert "sparsity not observable" in " ".join(result.stdout.replace("│", " ").split())
    build = BuildDocument.read(tmp_path / "build")
    assert build.verdict == "pass"
    written = {path.name for path in (tmp_path / "build").iterdir()}
    assert written == {"model.onnx", "control.plan", "sparse.plan", "control.log", "sparse.log", "build.json"}
    assert set(build.files) == written - {"build.json"}
    for name, record in build.files.items():
        content = (tmp_path / "build" / name).read_bytes()
        assert (record.sha256, record.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert [(engine.variant, engine.sm, engine.error) for engine in build.engines] == [
        ("control", "80", None),
        ("sparse", "80", None),
    ]
    checkpoint = (runs / "sparse" / "checkpoint.safetensors").read_bytes()
    assert build.source.sha256 == hashlib.sha256(checkpoint).hexdigest()
    assert build.numerics.passed
    assert build.numerics.inputs == "first 64 test samples of digits"
    facts = {name: (state, evidence) for name, state, evidence in build.facts.rows()}
    assert facts["legal"][0] == "proved"
    assert facts["eligible"][0] == "proved"
    assert facts["eligible"][1].startswith("8 of 10 layers")
    assert facts["chosen"][0] == "unknown"
    assert "compiles for SM80; sparsity not observable" in facts["chosen"][1]
    assert facts["faster"][0] == "unknown"
    # No file of the build tells where it was made.
    for name in written:
        assert str(tmp_path).encode() not in (tmp_path / "build" / name).read_bytes()


@pytest.mark.not_quick
def test_json_is_one_document_and_equals_the_file(runs, tmp_path, here):
    result = here("export", runs / "mlp", "-o", tmp_path / "b", "--builder", "none", "--json")
    assert result.returncode == 0, result.stderr
    # Only the thread count is said there.
    assert [line for line in result.stderr.splitlines() if not line.startswith("CPU: ")] == []
    assert json.loads(result.stdout) == json.loads((tmp_path / "b" / "build.json").read_text())
    document = json.loads(result.stdout)
    assert (document["schema"], document["engines"], document["batch"]) == (
        "nm2trt.build/2",
        [],
        {"min": 1, "opt": 8, "max": 64},
    )
    assert document["engines_note"] == "no engines were asked for (--builder none)"
    assert "export --precision fp16" in document["facts"]["eligible"]["evidence"]


def test_a_dense_network_passes_and_is_never_called_sparse(runs, tmp_path):
    build = export_run(runs / "dense", tmp_path / "b", builder="none")
    assert build.verdict == "pass"
    assert build.facts.legal.state is FactState.DISPROVED
    assert build.facts.eligible.state is FactState.DISPROVED
    assert failures(build) == []


def test_the_library_call_gives_back_what_it_wrote_and_tells_its_steps(runs, tmp_path):
    steps = []
    build = export_run(runs / "mlp", tmp_path / "b", builder="none", batch="4", progress=steps.append)
    assert BuildDocument.read(tmp_path / "b") == build
    assert (build.batch.min, build.batch.opt, build.batch.max) == (4, 4, 4)
    assert "exporting to ONNX" in steps
    names = sparse_names(make_run(tmp_path / "again", "mlp"))
    model = onnx.load(tmp_path / "b" / "model.onnx")
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert all((tensors[name] == 0).mean() == 0.5 for name in names)


@pytest.mark.not_quick
def test_outputs_past_the_tolerance_are_exit_1_and_the_build_stays(runs, tmp_path, here):
    # In fp32 a small network may agree to the last bit on one machine and not on another; in fp16 none does.
    strict = ("--precision", "fp16", "--tolerance", "1e-12")
    result = here("export", runs / "mlp", "-o", tmp_path / "b", "--builder", "none", *strict)
    assert result.returncode == 1
    assert "verdict: fail" in result.stdout
    assert result.stderr.count("nm2trt: error: ") == 1
    assert "more than 1e-12, at sample" in result.stderr
    assert BuildDocument.read(tmp_path / "b").verdict == "fail"


@pytest.mark.not_quick
def test_a_layer_that_lost_its_pattern_is_exit_1(runs, tmp_path, here):
    run = json.loads((runs / "dense" / "run.json").read_text())
    make_run(tmp_path / "run", "mlp", sparse=False)
    run.update(pattern="2:4", method="sr-ste")
    for layer in run["layers"]:
        layer["pattern"] = "2:4" if layer["name"] == "hidden1.weight" else None
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    result = here("export", tmp_path / "run", "-o", tmp_path / "b", "--builder", "none")
    assert result.returncode == 1
    assert "first hidden1.weight, group at [0, 0] along axis 1" in result.stderr
    assert "not hidden1.weight" in BuildDocument.read(tmp_path / "b").facts.legal.evidence
    assert BuildDocument.read(tmp_path / "b").facts.legal.state is FactState.DISPROVED


@pytest.mark.not_quick
@requires(rtx=True)
def test_a_failed_engine_is_exit_1_with_its_reason(runs, tmp_path, here, monkeypatch):
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "dying_worker.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setenv("PYTHONPATH", str(modules))
    monkeypatch.setattr("nm2trt.engine.builders.TensorrtRtxBuilder.resolve_sm", lambda self, sm: "80")
    monkeypatch.setattr("nm2trt.engine.process._WORKER", "dying_worker")
    result = here("export", runs / "mlp", "-o", tmp_path / "b", "--builder", "tensorrt-rtx")
    assert result.returncode == 1
    assert "nm2trt: error: control engine: the build process was killed by SIGKILL" in result.stderr
    build = BuildDocument.read(tmp_path / "b")
    assert [engine.file for engine in build.engines] == [None, None]
    assert build.facts.chosen.state is FactState.UNKNOWN
    assert "compiles for" not in build.facts.chosen.evidence


def test_all_wrong_options_are_told_at_once(runs, tmp_path, here):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    wrong = ("--precision", "int4", "--batch", "8:4:1", "--builder", "tvm", "--sm", "8.0", "--tolerance", "0")
    result = here("export", runs / "mlp", "-o", tmp_path / "mine", *wrong, "--force")
    assert_one_error_line(
        result, 2, "--precision int4", "--batch 8:4:1", "--builder tvm", "--sm 8.0", "--tolerance 0", "did not write"
    )
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_an_existing_build_is_kept_without_force_and_replaced_with_it(runs, tmp_path, here):
    first = export_run(runs / "mlp", tmp_path / "b", builder="none")
    result = here("export", runs / "mlp", "-o", tmp_path / "b", "--builder", "none")
    assert_one_error_line(result, 2, "the output folder exists", "--force")
    assert BuildDocument.read(tmp_path / "b") == first
    assert (
        here("export", runs / "mlp", "-o", tmp_path / "b", "--builder", "none", "--batch", "2", "--force").returncode
        == 0
    )
    assert BuildDocument.read(tmp_path / "b").batch.max == 2
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("source", "words"),
    [("absent", "does not exist"), ("file.onnx", "is no ONNX model"), ("empty", "no run.json")],
)
def test_a_source_that_is_no_run_is_exit_3(tmp_path, here, source, words):
    sources, target = tmp_path / "sources", tmp_path / "target"
    (sources / "empty").mkdir(parents=True)
    (sources / "file.onnx").write_bytes(b"x")
    target.mkdir()
    result = here("export", sources / source, "-o", target / "b", "--builder", "none")
    assert_one_error_line(result, 3, words, source)
    assert_untouched(target)


def test_a_damaged_checkpoint_leaves_nothing(tmp_path, here):
    make_run(tmp_path / "run")
    (tmp_path / "target").mkdir()
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    result = here("export", tmp_path / "run", "-o", tmp_path / "target" / "deep" / "b", "--builder", "none")
    assert_one_error_line(result, 3, "checkpoint.safetensors", "sha256")
    path.unlink()
    result = here("export", tmp_path / "run", "-o", tmp_path / "target" / "deep" / "b", "--builder", "none")
    assert_one_error_line(result, 3, "no checkpoint.safetensors")
    assert_untouched(tmp_path / "target")


def test_a_builder_that_is_absent_is_exit_4_before_any_work(runs, tmp_path, here, monkeypatch):
    monkeypatch.setattr("nm2trt.tensorrt_api.availability.util.find_spec", lambda name: None)
    (tmp_path / "target").mkdir()
    result = here("export", runs / "mlp", "-o", tmp_path / "target" / "b", "--builder", "tensorrt-rtx")
    assert_one_error_line(result, 4, "tensorrt-rtx is not installed", "pip install 'nm2trt[rtx]'")
    assert_untouched(tmp_path / "target")


@pytest.mark.not_quick
@requires(rtx=True)
def test_an_sm_that_rtx_cannot_target_is_exit_2(runs, tmp_path, here):
    result = here("export", runs / "mlp", "-o", tmp_path / "b", "--builder", "tensorrt-rtx", "--sm", "42")
    assert_one_error_line(result, 2, "SM42", "choose from")
    assert_untouched(tmp_path)


@pytest.mark.not_quick
@pytest.mark.parametrize("call", [1, 2])
def test_a_full_disk_is_exit_4_and_leaves_nothing(runs, tmp_path, here, monkeypatch, call):
    """The first synced file is model.onnx, the second build.json."""
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    result = here("export", runs / "mlp", "-o", tmp_path / "b", "--builder", "none")
    assert len(calls) == call
    assert_one_error_line(result, 4, "the disk is full")
    assert_untouched(tmp_path)


@requires(rtx=True)
def test_a_disk_that_fills_in_the_builder_leaves_the_old_build(runs, tmp_path, here, monkeypatch):
    before = export_run(runs / "mlp", tmp_path / "b", builder="none")
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "full_worker.py").write_text(f'print(\'{{"error": "full", "errno": {errno.ENOSPC}}}\')')
    monkeypatch.setenv("PYTHONPATH", str(modules))
    monkeypatch.setattr("nm2trt.engine.builders.TensorrtRtxBuilder.resolve_sm", lambda self, sm: "80")
    monkeypatch.setattr("nm2trt.engine.process._WORKER", "full_worker")
    result = here("export", runs / "mlp", "-o", tmp_path / "b", "--builder", "tensorrt-rtx", "--force")
    assert_one_error_line(result, 4, "the disk is full")
    assert BuildDocument.read(tmp_path / "b") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "modules"]


GOOD = {"precision": "fp32", "batch": "1:8:64", "builder": "auto", "sm": None, "tolerance": None}


@given(smallest=st.integers(0, 70), optimal=st.integers(0, 70), largest=st.integers(0, 70))
def test_a_batch_range_is_taken_when_it_rises(tmp_path_factory, smallest, optimal, largest):
    text = f"{smallest}:{optimal}:{largest}"
    output = tmp_path_factory.getbasetemp() / "never-made"
    if 1 <= smallest <= optimal <= largest:
        batch = checked_config(output, force=False, **{**GOOD, "batch": text}).batch
        assert (batch.min, batch.opt, batch.max) == (smallest, optimal, largest)
    else:
        with pytest.raises(ConfigError, match="--batch"):
            checked_config(output, force=False, **{**GOOD, "batch": text})


@given(field=st.sampled_from(["precision", "batch", "builder", "sm"]), text=st.text(max_size=12))
def test_any_text_is_taken_or_refused_by_name(tmp_path_factory, field, text):
    output = tmp_path_factory.getbasetemp() / "never-made"
    try:
        config = checked_config(output, force=False, **{**GOOD, field: text})
    except ConfigError as error:
        assert f"--{field}" in str(error)
        assert "\n" not in str(error)
    else:
        assert isinstance(config, ExportConfig)


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_on_a_gpu_auto_takes_tensorrt_and_observes_the_kernels(runs, tmp_path):
    build = export_run(runs / "sparse", tmp_path / "b", precision="fp16")
    assert {engine.builder for engine in build.engines} == {"tensorrt"}
    assert build.verdict == "pass", failures(build)
    # No dense weights were given, so there is no dense engine.
    assert {"control.layers.json", "sparse.layers.json"} <= set(build.files)
    assert "dense.layers.json" not in build.files
    assert f"SM{build.engines[0].sm}" in build.facts.chosen.evidence
