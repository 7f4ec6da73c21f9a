"""The guard before a refit, and what becomes of BUILD; TensorRT's own part stands behind a fake, and runs on a GPU."""

import errno
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import assert_one_error_line, export_run, nm2trt_inline, requires
from onnx import numpy_helper
from run_folders import make_run

from nm2trt.artifacts import BuildDocument, EngineRecord, FactState, check_plan
from nm2trt.engine import WorkerAnswer
from nm2trt.errors import InputError, MachineError
from nm2trt.pipelines.refit import TargetPlatform, refit_build

HERE = TargetPlatform(tensorrt_version="10.16.1.11", sm="80", platform="linux_x86_64")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of one network with two sets of sparse weights and one dense, of another network, and a first build."""
    folder = tmp_path_factory.mktemp("refit")
    make_run(folder / "first", "mlp", seed=1)
    make_run(folder / "second", "mlp", seed=2)
    make_run(folder / "dense", "mlp", sparse=False)
    make_run(folder / "other", "resnet8")
    export_run(folder / "first", folder / "build", builder="none", precision="fp16", batch="1:2:4")
    return folder


def with_engines(source, folder, *, flags=("REFIT", "SPARSE_WEIGHTS")):
    """The build with plans that TensorRT might have written."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    engines = []
    for variant in ("dense", "control", "sparse"):
        plan = f"{variant} plan".encode()
        (folder / f"{variant}.plan").write_bytes(plan)
        engines.append(
            EngineRecord(
                variant=variant, file=f"{variant}.plan", builder="tensorrt", builder_version="10.16.1.11", sm="80",
                platform="linux_x86_64", flags=list(flags), sha256=hashlib.sha256(plan).hexdigest(),
                size_bytes=len(plan), seconds=1.0, log=f"{variant}.log",
            )
        )  # fmt: skip
    BuildDocument.read(folder).model_copy(update={"engines": engines}).write(folder)
    return folder


@pytest.fixture
def build(made, tmp_path):
    return with_engines(made / "build", tmp_path / "b")


class Fake:
    """Writes a plan that tells which plan and which weights it came from."""

    def __init__(self, error=None, raises=None):
        self.jobs, self.error, self.raises = [], error, raises

    def __call__(self, job):
        self.jobs.append(job)
        if self.raises is not None:
            job.output.write_bytes(b"half")
            raise self.raises
        if self.error is None:
            job.output.write_bytes(job.plan.read_bytes() + hashlib.sha256(job.onnx.read_bytes()).digest())
        return WorkerAnswer(error=self.error)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_new_weights_reach_the_engines_and_the_manifest(made, build):
    before = contents(build)
    fake = Fake()
    document = refit_build(build, made / "second", refitter=fake, here=HERE)
    assert [job.output.name for job in fake.jobs] == ["control.plan", "sparse.plan"]
    after = contents(build)
    assert BuildDocument.read(build) == document
    assert after["dense.plan"] == before["dense.plan"], "its weights are others"
    export_run(made / "second", build.parent / "second", builder="none", precision="fp16", batch="1:2:4")
    expected = (build.parent / "second" / "model.onnx").read_bytes()
    assert after["model.onnx"] == expected != before["model.onnx"]
    assert after["sparse.plan"] == b"sparse plan" + hashlib.sha256(expected).digest()
    checkpoint = (made / "second" / "checkpoint.safetensors").read_bytes()
    assert document.source.sha256 == hashlib.sha256(checkpoint).hexdigest()
    assert document.numerics.passed
    assert document.facts.faster.state is FactState.UNKNOWN
    for name, record in document.files.items():
        assert hashlib.sha256(after[name]).hexdigest() == record.sha256
    for variant in ("control", "sparse", "dense"):
        check_plan(build, variant, tensorrt_version=HERE.tensorrt_version, sm="80", platform="linux_x86_64")


def test_the_folder_one_stands_in_can_be_refitted(made, build, monkeypatch):
    monkeypatch.chdir(build)
    document = refit_build(Path(), made / "second", refitter=Fake(), here=HERE)
    assert BuildDocument.read(build) == document
    assert not any(path.is_dir() for path in build.iterdir())


def test_a_bare_checkpoint_is_exported_as_the_build_was(made, build):
    fake = Fake()
    document = refit_build(build, made / "second" / "checkpoint.safetensors", refitter=fake, here=HERE)
    assert len(fake.jobs) == 2
    assert (document.source.kind, document.precision, document.batch.max) == ("checkpoint", "fp16", 4)


def refused(build, checkpoint, fake, error, words, **options):
    before = contents(build)
    with pytest.raises(error, match=words):
        refit_build(build, checkpoint, refitter=fake, here=HERE, **options)
    assert contents(build) == before
    assert [path.name for path in build.parent.iterdir() if path.name.startswith(".")] == []


def test_weights_that_break_the_pattern_are_refused_before_an_engine_is_touched(made, build):
    (build / "sparse.plan").write_bytes(b"not even looked at")
    fake = Fake()
    refused(build, made / "dense", fake, InputError, r"would lose it; first .*group at \[.*the engine was not touched")
    assert fake.jobs == []


def test_one_broken_group_in_an_onnx_file_is_enough(made, build, tmp_path):
    model = onnx.load(build / "model.onnx")
    name = next(
        layer["name"] for layer in BuildDocument.read(build).pattern["layers"] if layer["tensorrt"] == "eligible"
    )
    (tensor,) = (one for one in model.graph.initializer if one.name == name)
    weight = numpy_helper.to_array(tensor).copy()
    onnx.save(model, tmp_path / "same.onnx")
    refit_build(with_engines(made / "build", tmp_path / "b2"), tmp_path / "same.onnx", refitter=Fake(), here=HERE)
    weight[0, :4] = 1
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weight), name))
    onnx.save(model, tmp_path / "broken.onnx")
    fake = Fake()
    refused(build, tmp_path / "broken.onnx", fake, InputError, f"first {name}.*1, 1, 1, 1")
    assert fake.jobs == []


def test_another_network_is_refused(made, build):
    fake = Fake()
    refused(build, made / "other", fake, InputError, "is another network than the engine's: at ")
    assert fake.jobs == []


def test_a_changed_plan_is_refused_unless_trusted(made, build):
    (build / "sparse.plan").write_bytes(b"planted")
    fake = Fake()
    refused(build, made / "second", fake, InputError, r"sparse\.plan: sha256 is not that of build\.json")
    assert fake.jobs == []
    refit_build(build, made / "second", refitter=fake, here=HERE, trust=True)
    assert len(fake.jobs) == 2


def test_a_plan_of_another_gpu_is_refused(made, build):
    other = TargetPlatform(tensorrt_version="10.16.1.11", sm="90", platform="linux_x86_64")
    with pytest.raises(InputError, match="SM 80, here is 90"):
        refit_build(build, made / "second", refitter=Fake(), here=other)


def test_what_tensorrt_refuses_leaves_the_build_as_it_was(made, build):
    refused(build, made / "second", Fake(error="dense weights"), MachineError, "TensorRT refused: dense weights")
    full = OSError(errno.ENOSPC, "No space left on device", "sparse.plan")
    refused(build, made / "second", Fake(raises=full), OSError, "No space left")


def test_engines_that_cannot_be_refitted_say_which_option_makes_them(made, tmp_path):
    fixed = with_engines(made / "build", tmp_path / "fixed", flags=("TF32",))
    assert_one_error_line(nm2trt_inline("refit", fixed, made / "second"), 3, "flags: TF32", "--refittable")
    assert_one_error_line(nm2trt_inline("refit", made / "build", made / "second"), 3, "holds no engines")


def test_mistakes_cost_one_line_each(made, build, tmp_path):
    assert_one_error_line(nm2trt_inline("refit", build, tmp_path / "none"), 3, "does not exist")
    assert_one_error_line(nm2trt_inline("refit", tmp_path, made / "second"), 3, "no build.json")
    assert_one_error_line(nm2trt_inline("refit", build, made / "dense"), 3, "would lose it")


def test_without_tensorrt_the_guard_still_comes_first(made, build, monkeypatch):
    monkeypatch.setattr("nm2trt.tensorrt_api.availability.util.find_spec", lambda name: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    before = contents(build)
    assert_one_error_line(nm2trt_inline("refit", build, made / "second"), 4, "pip install 'nm2trt[tensorrt]'")
    assert contents(build) == before


@pytest.mark.gpu
@pytest.mark.tensorrt
@requires(gpu=True, tensorrt=True)
def test_a_refitted_engine_computes_what_the_new_network_computes(made, tmp_path):
    import onnxruntime
    from engine_runs import run_plan

    export_run(
        made / "first", tmp_path / "b", builder="tensorrt", precision="fp16", batch="1:2:4", engine={"refittable": True}
    )
    document = refit_build(tmp_path / "b", made / "second")
    x = np.random.default_rng(0).standard_normal((2, *made_shape(document))).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "b" / "model.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {document.inputs[0].name: x})
    for variant in ("control", "sparse"):
        found = run_plan(tmp_path / "b", variant, {document.inputs[0].name: x})[document.outputs[0].name]
        assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()
    again = refit_build(tmp_path / "b", made / "first")
    assert again.source.sha256 != document.source.sha256
    with pytest.raises(InputError, match="would lose it"):
        refit_build(tmp_path / "b", made / "dense")


def made_shape(document):
    return document.inputs[0].shape[1:]
