import errno
import hashlib
import json
import shutil
import signal
import subprocess
import sys

import onnx
import onnxruntime
import pytest
from serve_builds import everything, make_build

from nm2trt.artifacts import sha256_of
from nm2trt.artifacts.package import PackageDocument
from nm2trt.errors import ConfigError, InputError
from nm2trt.serve import PackageRequest, check_repository, package_triton, read_model
from nm2trt.serve.repository import backend_of


def package(repository, *builds, name="net", server="triton", **options):
    return package_triton(
        PackageRequest(builds=tuple(builds), repository=repository, name=name, server=server, **options)
    )


def test_a_plan_with_its_provenance(tmp_path):
    build = make_build(tmp_path / "build", builder="tensorrt")
    (one,) = package(tmp_path / "repo", build)
    assert set(everything(tmp_path / "repo")) == {
        "net/config.pbtxt",
        "net/package.json",
        "net/1/model.plan",
        "net/1/model.onnx",
    }
    assert (tmp_path / "repo/net/1/model.plan").read_bytes() == (build / "sparse.plan").read_bytes()
    (version,) = read_model(tmp_path / "repo/net").versions
    assert (version.variant, version.method, version.pattern) == ("sparse", "sr-ste", "2:4")
    (plan,) = version.plans
    assert (plan.tensorrt, plan.sm, plan.flags) == ("10.13.3.9", "80", ["SPARSE_WEIGHTS"])
    assert "25.11 to 26.02" in plan.triton
    assert one.document.max_batch == 64


def test_an_unknown_tensorrt_is_called_unknown(tmp_path):
    build = make_build(tmp_path / "build", builder="tensorrt", version="11.4.0.106")
    (one,) = package(tmp_path / "repo", build)
    assert one.version.plans[0].triton.startswith("unknown")


def test_a_new_version_lies_beside_the_old_one(tmp_path):
    repository = tmp_path / "repo"
    package(repository, make_build(tmp_path / "a", seed=1))
    before = everything(repository / "net/1")
    package(repository, make_build(tmp_path / "b", seed=2))
    package(repository, tmp_path / "a", version=7)
    assert everything(repository / "net/1") == before
    assert [version.version for version in read_model(repository / "net").versions] == [1, 2, 7]
    assert everything(repository / "net/7") == before
    assert not list(repository.rglob("*.partial-*"))


def test_dense_and_sparse_side_by_side(tmp_path):
    build = make_build(tmp_path / "build", builder="tensorrt")
    dense = make_build(tmp_path / "dense", seed=5, builder="tensorrt")
    models = package(tmp_path / "repo", build, variants=("sparse", "control"), dense=dense)
    assert [one.document.model for one in models] == ["net", "net-control", "net-dense"]
    assert [one.version.variant for one in models] == ["sparse", "control", "dense"]
    repository = tmp_path / "repo"
    assert (repository / "net-dense/1/model.plan").read_bytes() == (dense / "control.plan").read_bytes()
    assert (repository / "net-control/1/model.plan").read_bytes() == (build / "control.plan").read_bytes()
    assert (repository / "net/1/model.onnx").read_bytes() != (repository / "net-dense/1/model.onnx").read_bytes()


def test_plans_for_several_gpus_in_one_version(tmp_path):
    builds = [make_build(tmp_path / sm, builder="tensorrt", sm=sm) for sm in ("80", "90")]
    package(tmp_path / "repo", *builds)
    for sm, build in zip(("80", "90"), builds, strict=True):
        assert (tmp_path / f"repo/net/1/model.sm{sm}.plan").read_bytes() == (build / "sparse.plan").read_bytes()
    config = (tmp_path / "repo/net/config.pbtxt").read_text()
    assert 'value: "model.sm90.plan"' in config


def test_labels_stay_with_later_versions(tmp_path):
    build = make_build(tmp_path / "build", channels=8)
    document = json.loads((build / "build.json").read_text())
    document["outputs"][0]["shape"] = ["N", 8]
    (build / "build.json").write_text(json.dumps(document))
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("abcdefgh"))
    package(tmp_path / "repo", build, labels=labels)
    package(tmp_path / "repo", build)
    assert 'label_filename: "labels.txt"' in (tmp_path / "repo/net/config.pbtxt").read_text()
    labels.write_text("a\nb\n")
    with pytest.raises(InputError, match="holds 2 lines, and the network has 8 classes"):
        package(tmp_path / "repo", build, labels=labels)
    assert (tmp_path / "repo/net/labels.txt").read_text().split() == list("abcdefgh")
    assert [version.version for version in read_model(tmp_path / "repo/net").versions] == [1, 2]


# A new model's own files are written before it appears, so the second way exists only beside an old version.
@pytest.mark.parametrize(("fresh", "broken"), [(True, "copyfile"), (False, "copyfile"), (False, "write_atomic")])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, fresh, broken):
    repository = tmp_path / "repo"
    build = make_build(tmp_path / "build", seed=1)
    if not fresh:
        package(repository, make_build(tmp_path / "old", seed=2))
    before = everything(repository) if repository.exists() else {}

    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device", "model.onnx")

    if broken == "copyfile":
        monkeypatch.setattr(shutil, "copyfile", full)
    else:
        monkeypatch.setattr("nm2trt.serve.publish.write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        package(repository, build, queue_delay_us=9)
    assert (everything(repository) if repository.exists() else {}) == before
    assert not list(tmp_path.rglob(".*partial*"))
    if not fresh:
        assert check_repository(repository) == {"net": ("onnxruntime", [1])}


def test_weights_beside_the_graph_go_along(tmp_path):
    build = make_build(tmp_path / "build")
    model = onnx.load(build / "model.onnx")
    onnx.save(model, build / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    document = json.loads((build / "build.json").read_text())
    for name in ("model.onnx", "model.onnx.data"):
        content = (build / name).read_bytes()
        document["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    (build / "build.json").write_text(json.dumps(document))
    package(tmp_path / "repo", build, server="triton-cpu")
    onnxruntime.InferenceSession(str(tmp_path / "repo/net/1/model.onnx"), providers=["CPUExecutionProvider"])
    assert set(read_model(tmp_path / "repo/net").versions[0].files) == {"model.onnx", "model.onnx.data", "model.py"}
    (build / "model.onnx.data").write_bytes(b"other")
    with pytest.raises(InputError, match=r"model\.onnx\.data: sha256"):
        package(tmp_path / "other", build)


def test_the_dense_network_of_a_build(tmp_path):
    build = make_build(tmp_path / "build")
    content = (make_build(tmp_path / "dense", seed=9) / "model.onnx").read_bytes()
    (build / "dense.onnx").write_bytes(content)
    document = json.loads((build / "build.json").read_text())
    document["files"]["dense.onnx"] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    (build / "build.json").write_text(json.dumps(document))
    package(tmp_path / "repo", build, variants=("sparse", "dense"))
    assert (tmp_path / "repo/net-dense/1/model.onnx").read_bytes() == content
    assert (tmp_path / "repo/net/1/model.onnx").read_bytes() == (build / "model.onnx").read_bytes()


@pytest.mark.parametrize("at", ["shutil.copyfile", "nm2trt.serve.publish.write_atomic"])
def test_a_kill_leaves_the_old_version_in_place(tmp_path, at):
    repository, build = tmp_path / "repo", make_build(tmp_path / "build", seed=1)
    package(repository, make_build(tmp_path / "old", seed=2))
    before = everything(repository / "net")
    module, _, name = at.rpartition(".")
    code = (
        f"import os, signal, {module}\n"
        f"{module}.{name} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from nm2trt.cli.main import run\n"
        f"run(['package', {str(build)!r}, '-o', {str(repository)!r}, '--name', 'net', '--queue-delay-us', '9'])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    after = everything(repository / "net")
    assert {name: after[name] for name in before} == before
    assert check_repository(repository) == {"net": ("onnxruntime", [1])}
    # The lock went with the process, and what it left lying is cleared.
    package(repository, build)
    assert [version.version for version in read_model(repository / "net").versions] == [1, 2]
    assert not list((repository / "net").glob(".*"))
    assert not list(repository.glob(".*.lock"))


@pytest.mark.parametrize("step", range(4))
def test_a_kill_at_any_step_leaves_a_repository_that_serves_and_takes_versions(tmp_path, step):
    """Steps beside an old version: package.json, the new version's folder, config.pbtxt, and after them."""
    repository, build = tmp_path / "repo", make_build(tmp_path / "build", seed=1)
    package(repository, make_build(tmp_path / "old", seed=2))
    code = (
        "import os, pathlib, signal\n"
        "import nm2trt.serve.publish as r\n"
        "done = 0\n"
        "def counted(real):\n"
        "    def call(*a, **k):\n"
        "        global done\n"
        f"        if done == {step}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        done += 1\n"
        "        return real(*a, **k)\n"
        "    return call\n"
        "r.write_atomic = counted(r.write_atomic)\n"
        "pathlib.Path.rename = counted(pathlib.Path.rename)\n"
        "r._clean_warmup = counted(r._clean_warmup)\n"
        "from nm2trt.cli.main import run\n"
        f"run(['package', {str(build)!r}, '-o', {str(repository)!r}, '--name', 'net', '--queue-delay-us', '9'])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    ((_, loaded),) = check_repository(repository).values()
    # One version at a time for ONNX Runtime on a GPU, and always one whose engine cache config.pbtxt names.
    (number,) = loaded
    key = sha256_of(repository / "net" / str(number) / "model.onnx")[:16]
    assert f'"/tmp/nm2trt-engines-net-{key}"' in (repository / "net/config.pbtxt").read_text()
    package(repository, build)
    assert check_repository(repository)["net"][1][-1] in (2, 3)


def bad_cases():
    def fixed(tmp_path):
        return [make_build(tmp_path / "b", fixed_batch=4)], {"max_batch": 8}

    def fixed_delay(tmp_path):
        return [make_build(tmp_path / "b", fixed_batch=4)], {"queue_delay_us": 100}

    def too_large(tmp_path):
        return [make_build(tmp_path / "b")], {"max_batch": 65}

    def small_batches_missing(tmp_path):
        build = make_build(tmp_path / "b", builder="tensorrt")
        document = json.loads((build / "build.json").read_text())
        document["batch"]["min"] = 4
        (build / "build.json").write_text(json.dumps(document))
        return [build], {}

    def other_sm(tmp_path):
        return [make_build(tmp_path / "b", builder="tensorrt")], {"sm": "90"}

    def other_tensorrt(tmp_path):
        return [make_build(tmp_path / "b", builder="tensorrt")], {"tensorrt": "10.14.1.48"}

    def rtx(tmp_path):
        return [make_build(tmp_path / "b", builder="tensorrt-rtx")], {"platform": "tensorrt_plan"}

    def no_plan(tmp_path):
        return [make_build(tmp_path / "b")], {"platform": "tensorrt_plan"}

    def changed_plan(tmp_path):
        build = make_build(tmp_path / "b", builder="tensorrt")
        (build / "sparse.plan").write_bytes(b"other")
        return [build], {}

    def changed_onnx(tmp_path):
        build = make_build(tmp_path / "b")
        (build / "model.onnx").write_bytes(b"other")
        return [build], {}

    def failed_build(tmp_path):
        return [make_build(tmp_path / "b", verdict="fail")], {}

    def two_networks(tmp_path):
        return [
            make_build(tmp_path / "a", builder="tensorrt", sm="80"),
            make_build(tmp_path / "b", builder="tensorrt", sm="90", source="2" * 64),
        ], {}

    def twice_the_same_sm(tmp_path):
        return [make_build(tmp_path / one, builder="tensorrt") for one in "ab"], {}

    def two_tensorrts(tmp_path):
        return [
            make_build(tmp_path / "a", builder="tensorrt", sm="80"),
            make_build(tmp_path / "b", builder="tensorrt", sm="90", version="10.14.1.48"),
        ], {}

    def no_dense(tmp_path):
        return [make_build(tmp_path / "b")], {"variants": ("dense",)}

    def bad_name(tmp_path):
        return [make_build(tmp_path / "b")], {"name": "../up"}

    def bf16_on_a_cpu(tmp_path):
        build = make_build(tmp_path / "b")
        document = json.loads((build / "build.json").read_text())
        (build / "build.json").write_text(json.dumps({**document, "precision": "bf16"}))
        return [build], {"server": "triton-cpu"}

    def no_build(tmp_path):
        return [tmp_path], {}

    return [
        (fixed, ConfigError, "no dynamic batch"),
        (fixed_delay, ConfigError, "--queue-delay-us: the build has no dynamic batch"),
        (too_large, ConfigError, "65 is outside 1..64"),
        (small_batches_missing, ConfigError, "takes batches from 4 on"),
        (other_sm, InputError, "built for SM 80, here is 90"),
        (other_tensorrt, InputError, "TensorRT 10.13.3.9, here is 10.14.1.48"),
        (rtx, InputError, "built by tensorrt-rtx"),
        (no_plan, InputError, "holds no sparse plan"),
        (changed_plan, InputError, "sha256"),
        (changed_onnx, InputError, "the file was changed"),
        (failed_build, InputError, "own checks failed"),
        (two_networks, InputError, "source is not that of the first build"),
        (twice_the_same_sm, ConfigError, "two builds hold a plan for SM 80"),
        (two_tensorrts, InputError, "TensorRT 10.13.3.9 and 10.14.1.48"),
        (no_dense, InputError, "holds no dense network"),
        (bad_name, ConfigError, "model name '../up'"),
        (bf16_on_a_cpu, InputError, "no bfloat16 kernels"),
        (no_build, InputError, "no build.json"),
    ]


@pytest.mark.parametrize(("make", "error", "words"), bad_cases(), ids=lambda value: getattr(value, "__name__", ""))
def test_bad_input_writes_nothing(tmp_path, make, error, words):
    builds, options = make(tmp_path)
    with pytest.raises(error, match=words) as caught:
        package(tmp_path / "repo", *builds, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "repo").exists()
    assert not list(tmp_path.rglob(".*partial*"))


def existing_cases():
    def another_network(folder):
        return make_build(folder, channels=12), {}

    def another_platform(folder):
        return make_build(folder), {"server": "triton-cpu"}

    def batched_before(folder):
        return make_build(folder, fixed_batch=4), {}

    def taken_version(folder):
        return make_build(folder), {"version": 1}

    return [another_network, another_platform, batched_before, taken_version]


@pytest.mark.parametrize("make", existing_cases())
def test_another_model_of_that_name_is_refused(tmp_path, make):
    repository = tmp_path / "repo"
    package(repository, make_build(tmp_path / "first"))
    before = everything(repository)
    build, options = make(tmp_path / "second")
    with pytest.raises(ConfigError):
        package(repository, build, **options)
    assert everything(repository) == before


def test_what_a_config_names_as_its_backend():
    assert backend_of('name: "a"\nbackend: "python"\n') == "python"
    assert backend_of('platform: "tensorrt_plan"\n') == "tensorrt"
    assert backend_of('platform: "onnxruntime_onnx"\n') == "onnxruntime"
    assert backend_of("") == ""


def test_triton_cpu_copies_the_model_that_runs_it(tmp_path):
    package(tmp_path / "repo", make_build(tmp_path / "build"), server="triton-cpu")
    assert set(everything(tmp_path / "repo/net/1")) == {"model.onnx", "model.py"}
    document = PackageDocument.read(tmp_path / "repo/net")
    assert (document.platform, document.gpu) == ("python", False)
    compile((tmp_path / "repo/net/1/model.py").read_text(), "model.py", "exec")
