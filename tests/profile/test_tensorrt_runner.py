"""The TensorRT runner: shapes and gates here, the rest on a GPU."""

from enum import Enum
from types import SimpleNamespace

import onnx
import pytest
import torch
from helpers import nm2trt_inline
from small_networks import build_folder, small_network

from nm2trt.errors import ConfigError, InputError, MachineError
from nm2trt.profile import profile, profile_config
from nm2trt.profile.runners.tensorrt_engine import Engine, EngineContext, input_shapes
from nm2trt.profile.runners.tensorrt_runner import TensorrtRunner
from nm2trt.profile.source import read_source
from nm2trt.profile.variants import make_variants
from nm2trt.tensorrt_api import explain_missing


class Mode(Enum):
    INPUT = 1
    OUTPUT = 2


def engine(**inputs):
    names = [*inputs, "y"]
    return SimpleNamespace(
        num_io_tensors=len(names),
        get_tensor_name=lambda index: names[index],
        get_tensor_mode=lambda name: Mode.OUTPUT if name == "y" else Mode.INPUT,
        get_tensor_shape=lambda name: inputs[name],
    )


TRT = SimpleNamespace(TensorIOMode=Mode)


def test_dynamic_dimensions_are_filled_from_batch_and_shape():
    cuda = engine(ids=(-1, -1), mask=(-1, -1), pixels=(-1, 3, 224, 224))
    given = {"ids": (1, 128), "mask": (1, 128)}
    assert input_shapes(cuda, TRT, 8, given, name="e") == {
        "ids": (8, 128), "mask": (8, 128), "pixels": (8, 3, 224, 224)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        ((-1, -1), {}, r"dynamic dimensions besides the batch: \?; give them with --shape x=8x\?"),
        ((4, 3), {}, "fixed batch of 4, not 8; use --batch 4"),
        ((-1, -1, 7), {"x": (1, 5)}, r"\?x7"),
    ],
)
def test_shapes_that_stay_open_are_named(shape, given, message):
    with pytest.raises(InputError, match=message):
        input_shapes(engine(x=shape), TRT, 8, given, name="e")


def test_an_onnx_file_is_no_engine(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(small_network(sparse=True), path)
    with pytest.raises(InputError, match="TensorRT's variants are engines; export it first"):
        make_variants("tensorrt", read_source(path), None, profile_config(backend="tensorrt"))


def test_builds_that_the_folder_lacks_are_named(tmp_path):
    folder = build_folder(tmp_path / "b", small_network(sparse=True))
    with pytest.raises(InputError, match=r"holds 0 builds of the control engine, not 3.*--rebuilds 3"):
        make_variants("tensorrt", read_source(folder), None, profile_config(backend="tensorrt", rebuilds=3))


@pytest.mark.parametrize("flavor", ["tensorrt", "tensorrt-rtx"])
def test_without_library_or_gpu_no_plan_is_touched(tmp_path, flavor):
    if not explain_missing(flavor):
        pytest.skip("there is a GPU here; the tests marked gpu load real plans")
    with pytest.raises(MachineError, match=f"--backend {flavor}: .*(not installed|no NVIDIA GPU)"):
        Engine(tmp_path / "there is nothing here", "sparse", flavor=flavor)


@pytest.mark.tensorrt
def test_engines_are_timed_and_their_layers_too(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(small_network(sparse=True, channels=64), path)
    result = nm2trt_inline("export", path, "--builder", "tensorrt", "--batch", "1:4:8", "-o", tmp_path / "build")
    assert result.returncode == 0, result.stderr
    config = profile_config(backend="tensorrt", batches="1,4", duration_s=1.0, streams=2)
    report = profile(tmp_path / "build", config)
    assert [variant.name for variant in report.batches[0].variants] == ["control", "sparse", "sparse-repeat"]
    assert report.batches[0].tuned_for == 4
    assert all(variant.enqueue_ms > 0 and variant.with_transfers is not None for variant in report.batches[0].variants)
    assert report.layers.sparse_ms > 0
    assert report.load.capacity_per_s["sparse"] > 0


@pytest.mark.tensorrt
def test_a_changed_plan_is_never_loaded(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(small_network(sparse=True, channels=64), path)
    assert nm2trt_inline("export", path, "--builder", "tensorrt", "-o", tmp_path / "build").returncode == 0
    with (tmp_path / "build" / "sparse.plan").open("ab") as plan:
        plan.write(b"\0")
    with pytest.raises(InputError, match="sha256"):
        Engine(tmp_path / "build", "sparse")


@pytest.fixture(scope="module")
def engine_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    onnx.save(small_network(sparse=True, channels=64), folder / "net.onnx")
    result = nm2trt_inline(
        "export", folder / "net.onnx", "--builder", "tensorrt", "--batch", "1:4:8", "-o", folder / "build"
    )
    assert result.returncode == 0, result.stderr
    return folder / "build"


@pytest.mark.tensorrt
def test_transfers_bring_the_inputs_and_not_what_lay_in_that_memory(engine_folder):
    runner = TensorrtRunner(Engine(engine_folder, "sparse"))
    runner.prepare(2)
    (inputs,) = runner._main.inputs.values()
    before = inputs.clone()
    assert runner.run_with_transfers() > 0
    assert torch.equal(inputs, before)
    (outputs,) = runner._main.outputs.values()
    assert torch.isfinite(outputs).all()
    assert runner.memory_bytes() > runner._loaded().plan_bytes


@pytest.mark.tensorrt
def test_more_streams_than_torch_has_are_refused(engine_folder):
    runner = TensorrtRunner(Engine(engine_folder, "sparse"))
    runner.prepare(2)
    assert len(runner.streams(2)) == 2
    with pytest.raises(ConfigError, match=r"--streams: 33 streams, and torch has 32.*at most 32"):
        runner.streams(33)


@pytest.mark.tensorrt
def test_a_failed_capture_leaves_torch_as_it_was(engine_folder, monkeypatch):
    runner = TensorrtRunner(Engine(engine_folder, "sparse"))
    runner.prepare(2)
    assert runner.has_graph
    before = torch.cuda.current_stream()
    real = EngineContext.enqueue
    calls = []

    def enqueue(self):
        calls.append(len(calls))
        if len(calls) == 2:  # the first is the warm-up, the second is captured
            raise MachineError("cannot be captured")
        real(self)

    monkeypatch.setattr(EngineContext, "enqueue", enqueue)
    runner.prepare(4)
    assert not runner.has_graph
    assert torch.cuda.current_stream() == before
    assert "off" in runner.record.settings["CUDA graph"]
    assert runner.run_once() > 0


@pytest.mark.tensorrt
def test_layers_are_not_marked_for_nsight(engine_folder):
    runner = TensorrtRunner(Engine(engine_folder, "sparse"))
    runner.prepare(1)
    main = runner._main
    assert main.context.nvtx_verbosity == runner._loaded().trt.ProfilingVerbosity.NONE


@pytest.mark.tensorrt
@pytest.mark.parametrize("call", ["run_once", "run_with_transfers"])
def test_the_gpu_is_busy_before_the_first_event(engine_folder, monkeypatch, call):
    """Or the events would hold the host's launch time, which at small batches is all that there is."""
    runner = TensorrtRunner(Engine(engine_folder, "sparse"))
    runner.prepare(1)
    order = []
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append("busy" if cycles > 0 else "idle"))
    first, last = runner._marks
    for mark, name in ((first, "first"), (last, "last")):
        record = mark.record
        monkeypatch.setattr(mark, "record", lambda record=record, name=name: (order.append(name), record())[1])
    launch = runner._launch
    monkeypatch.setattr(runner, "_launch", lambda main: (order.append("launch"), launch(main))[1])
    getattr(runner, call)()
    assert order == ["busy", "first", "launch", "last"]
