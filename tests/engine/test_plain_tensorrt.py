"""Export, inspect, profile and refit with plain TensorRT, on its double: both versions, and every fault in words."""

import json
import shutil

import onnx
import pytest
from helpers import assert_one_error_line
from small_networks import small_network
from tensorrt_double.double import VERSIONS, nm2trt_on_double, require_double

from nm2trt.artifacts import BuildDocument, FactState
from nm2trt.artifacts.report import ReportDocument

OPTIONS = ("--builder", "tensorrt", "--batch", "1:2:4")
CACHE = "timing"


@pytest.fixture(scope="module", params=VERSIONS)
def version(request):
    return require_double(request.param)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    for name, seed in (("sparse", 0), ("other", 1)):
        model = small_network(sparse=True, seed=seed)
        for index, node in enumerate(model.graph.node):
            node.name = f"{node.op_type}_{index}"
        onnx.save(model, folder / f"{name}.onnx")
    dense = small_network(seed=2)
    for index, node in enumerate(dense.graph.node):
        node.name = f"{node.op_type}_{index}"
    onnx.save(dense, folder / "dense.onnx")
    return folder


@pytest.fixture(scope="module")
def build(version, networks, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"build-{version}") / "b"
    result = nm2trt_on_double(
        version, "export", networks / "sparse.onnx", "--dense", networks / "dense.onnx", *OPTIONS, "--rebuilds", "2",
        "--refittable", "-o", folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def newest():
    """Faults are TensorRT's, not a version's: they are tried on one."""
    return require_double(VERSIONS[-1])


@pytest.fixture(scope="module")
def newest_build(newest, networks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("build-newest") / "b"
    result = export(newest, networks, folder, "--refittable")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def export(version, networks, folder, *options, faults=(), torch=""):
    source = networks / "sparse.onnx"
    return nm2trt_on_double(
        version, "export", source, *OPTIONS, *options, "-o", folder, faults=faults, torch=torch
    )  # fmt: skip


def test_three_variants_are_built_twice_and_their_kernels_are_read(build, version):
    document = BuildDocument.read(build)
    found = [(one.variant, one.rebuild, one.error) for one in document.engines]
    assert found == [(variant, number, None) for number in (0, 1) for variant in ("dense", "control", "sparse")]
    assert document.facts.chosen.state is FactState.PROVED
    assert {one.builder_version.startswith(version) for one in document.engines} == {True}
    kept = {one.variant: [layer.chosen for layer in one.layers if layer.has_weights] for one in document.engines}
    assert kept == {"dense": [False, False], "control": [False, False], "sparse": [True, True]}


def test_inspect_reads_the_builds_of_this_library(build, version):
    result = nm2trt_on_double(version, "inspect", build, "--json")
    assert result.returncode == 0, result.stderr
    sparse = next(one for one in json.loads(result.stdout)["engines"] if one["name"] == "sparse")
    assert sparse["totals"]["sparse"] == 2


@pytest.mark.parametrize(("faults", "graph"), [((), "on"), (("no_capture_sparse",), "off")])
def test_graphs_are_used_by_all_variants_or_by_none(build, version, tmp_path, faults, graph):
    result = nm2trt_on_double(
        version, "profile", build, "--backend", "tensorrt", "--batch", "1,2", "--duration", "0.3", "--streams", "2",
        "--rebuilds", "2", "--json", "-o", tmp_path / "report", faults=faults,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["runner"]["settings"]["CUDA graph"].partition(":")[0] == graph
    assert report["runner"]["version"].startswith(version)
    read = ReportDocument.read(tmp_path / "report")
    assert {variant.name for variant in read.batches[0].variants} == {"dense", "control", "sparse", "sparse-repeat"}
    assert read.layers is not None


def test_refit_gives_the_engines_the_new_weights(build, networks, version, tmp_path):
    copy = tmp_path / "b"
    shutil.copytree(build, copy)
    result = nm2trt_on_double(version, "refit", copy, networks / "other.onnx")
    assert result.returncode == 0, result.stderr
    new, old = BuildDocument.read(copy), BuildDocument.read(build)
    changed = {one.variant: one.sha256 != two.sha256 for one, two in zip(new.engines, old.engines, strict=True)}
    assert changed == {"dense": False, "control": True, "sparse": True}


def test_a_refused_refit_says_why_and_keeps_its_log(newest_build, networks, newest, tmp_path):
    copy = tmp_path / "b"
    shutil.copytree(newest_build, copy)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    result = nm2trt_on_double(newest, "refit", copy, networks / "other.onnx", faults=["refit_refused"])
    assert_one_error_line(result, 4, "conv1.weight is not 2:4 sparse", "b-control.refit.log")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert "refitCudaEngine" in (tmp_path / "b-control.refit.log").read_text()


@pytest.mark.parametrize(
    ("command", "fault", "code", "words"),
    [
        ("profile", "no_driver", 4, "CUDA initialization failure with error: 35"),
        ("profile", "no_context", 4, "no execution context: Error Code 2: OutOfMemory"),
        ("profile", "no_deserialize", 3, "could not deserialize it: IRuntime::deserializeCudaEngine"),
        ("refit", "no_serialize", 4, "could not be serialized"),
        ("refit", "no_driver", 4, "CUDA initialization failure with error: 35"),
    ],
)
def test_what_tensorrt_cannot_do_is_one_line(newest_build, networks, newest, tmp_path, command, fault, code, words):
    copy = tmp_path / "b"
    shutil.copytree(newest_build, copy)
    arguments = {
        "profile": ("profile", copy, "--backend", "tensorrt", "--duration", "0.3", "-o", tmp_path / "r"),
        "refit": ("refit", copy, networks / "other.onnx"),
    }[command]
    assert_one_error_line(nm2trt_on_double(newest, *arguments, faults=[fault]), code, words)


@pytest.mark.parametrize(
    ("torch", "words"),
    [
        ("old_driver", "the NVIDIA driver is too old: it supports CUDA 12.4, and torch was built for CUDA 13.0"),
        ("no_driver", "there is no NVIDIA driver"),
    ],
)
def test_an_old_driver_is_not_called_a_missing_gpu(networks, newest, tmp_path, torch, words):
    result = export(newest, networks, tmp_path / "b", torch=torch)
    assert_one_error_line(result, 4, words)
    assert "not installed" not in result.stderr


@pytest.mark.parametrize("fault", ["bad_inspector", "no_inspector"])
def test_an_engine_without_layers_is_an_engine(networks, newest, tmp_path, fault):
    result = export(newest, networks, tmp_path / "b", faults=[fault])
    assert result.returncode == 0, result.stdout + result.stderr
    document = BuildDocument.read(tmp_path / "b")
    assert [one.error for one in document.engines] == [None, None]
    assert "inspector" in result.stdout if fault == "no_inspector" else True
    # The log alone still tells what the builder chose, and of the rest nothing is claimed.
    assert not any(layer.chosen is False for layer in document.engines[1].layers if layer.has_weights)


def test_an_answer_survives_the_end_of_its_process(networks, newest, tmp_path):
    result = export(newest, networks, tmp_path / "b", faults=["crash_after_answer"])
    document = BuildDocument.read(tmp_path / "b")
    assert [one.file for one in document.engines] == ["control.plan", "sparse.plan"]
    assert all("SIGSEGV" in one.note for one in document.engines)
    assert "after it had answered" in result.stdout


def test_a_process_that_is_killed_leaves_its_log(networks, newest, tmp_path):
    result = export(newest, networks, tmp_path / "b", faults=["crash_in_build"])
    assert result.returncode == 1
    (first, _) = BuildDocument.read(tmp_path / "b").engines
    assert first.file is None
    assert "SIGKILL" in first.error
    assert "Building engine" in (tmp_path / "b" / first.log).read_text()


def test_a_build_without_a_plan_says_what_tensorrt_said(networks, newest, tmp_path):
    result = export(newest, networks, tmp_path / "b", faults=["no_plan"])
    assert result.returncode == 1
    assert all("Could not find any implementation" in one.error for one in BuildDocument.read(tmp_path / "b").engines)


def test_a_shared_cache_is_keyed_and_extended(networks, newest, tmp_path):
    shared = tmp_path / "t.cache"
    for name in ("one", "two"):
        result = export(newest, networks, tmp_path / name, "--timing-cache", shared)
        assert result.returncode == 0, result.stdout + result.stderr
    (keyed,) = tmp_path.glob("t.*.cache")
    assert f".trt{newest}" in keyed.name
    assert "a100-sxm4-80gb" in keyed.name
    assert BuildDocument.read(tmp_path / "two").engines[0].timing_cache == f"{keyed.name} extended"
    assert not shared.exists()


@pytest.mark.parametrize("fault", ["cache_version", "cache_device"])
def test_a_cache_that_was_refused_is_left_as_it_is(networks, newest, tmp_path, fault):
    shared = tmp_path / "t.cache"
    first = export(newest, networks, tmp_path / "one", "--timing-cache", shared)
    assert first.returncode == 0, first.stdout + first.stderr
    (keyed,) = tmp_path.glob("t.*.cache")
    before = keyed.read_bytes()
    shared.write_bytes(b"made by another TensorRT")
    result = export(newest, networks, tmp_path / "two", "--timing-cache", shared, faults=[fault])
    assert result.returncode == 0, result.stdout + result.stderr
    said = BuildDocument.read(tmp_path / "two").engines[0].timing_cache
    assert "refused by TensorRT" in said
    assert "extended" not in said if fault == "cache_version" else True
    assert shared.read_bytes() == b"made by another TensorRT"
    assert set(before.splitlines()) <= set(keyed.read_bytes().splitlines())


def test_a_plan_that_was_changed_is_not_loaded(newest_build, newest, tmp_path):
    copy = tmp_path / "b"
    shutil.copytree(newest_build, copy)
    with (copy / "sparse.plan").open("ab") as plan:
        plan.write(b"\0")
    arguments = ("profile", copy, "--backend", "tensorrt", "--duration", "0.3", "-o", tmp_path / "r")
    assert_one_error_line(nm2trt_on_double(newest, *arguments), 3, "sha256", "--trust")
