"""A model over its versions: options that stay, versions that are removed, rolled back, gone or damaged."""

import errno
import json
import os
import re
import shutil

import pytest
from helpers import assert_one_error_line, nm2trt_inline
from serve_builds import everything, make_build

from nm2trt.artifacts import BatchRange, write_atomic
from nm2trt.artifacts.package import PackageDocument
from nm2trt.errors import ConfigError, InputError
from nm2trt.serve import PackageRequest, check_repository, package_triton, read_model, remove_version, roll_back


def package(repository, *builds, name="net", server="triton-cpu", **options):
    (one,) = package_triton(
        PackageRequest(builds=tuple(builds), repository=repository, name=name, server=server, **options)
    )
    return one


def plans(repository, *builds, **options):
    return package(repository, *builds, server="triton", **options)


def with_batch(build, low, opt, high):
    document = json.loads((build / "build.json").read_text())
    document["batch"] = {"min": low, "opt": opt, "max": high}
    (build / "build.json").write_text(json.dumps(document))
    return build


def config(repository):
    return (repository / "net/config.pbtxt").read_text()


def loaded(repository):
    return check_repository(repository)["net"][1]


def number(text, key):
    return int(re.search(rf"{key}: (\d+)", text).group(1))


@pytest.fixture
def build(tmp_path):
    return make_build(tmp_path / "build")


def test_options_stay_as_the_version_before_has_them(tmp_path, build):
    repository = tmp_path / "repo"
    package(repository, build, instances=3, queue_delay_us=7, max_batch=16)
    package(repository, build)
    text = config(repository)
    assert (number(text, "count"), number(text, "microseconds"), number(text, "max_batch_size")) == (3, 7, 16)
    package(repository, build, instances=1)
    text = config(repository)
    assert (number(text, "count"), number(text, "microseconds"), number(text, "max_batch_size")) == (1, 7, 16)


def test_device_and_platform_stay(tmp_path):
    build = make_build(tmp_path / "build", builder="tensorrt")
    repository = tmp_path / "repo"
    plans(repository, build, platform="onnxruntime", device="cpu")
    again = plans(repository, build)
    assert (again.document.platform, again.document.gpu) == ("onnxruntime", False)
    assert again.why == "as the version before"


def test_cuda_graphs_stay_off(tmp_path):
    build = make_build(tmp_path / "build", builder="tensorrt")
    plans(tmp_path / "repo", build, cuda_graphs=False)
    plans(tmp_path / "repo", build)
    assert "cuda" not in config(tmp_path / "repo")


@pytest.mark.parametrize("edit", [lambda text: text + "# mine\n", lambda text: text.replace("count: 1", "count: 4")])
def test_an_edit_by_hand_is_never_lost_unasked(tmp_path, build, edit):
    repository = tmp_path / "repo"
    package(repository, build)
    path = repository / "net/config.pbtxt"
    path.write_text(edit(path.read_text()))
    before = everything(repository)
    result = nm2trt_inline("package", build, "--server", "triton-cpu", "-o", repository, "--name", "net")
    assert_one_error_line(result, 2, "edited by hand", "--keep-config", "--rewrite-config")
    assert everything(repository) == before
    package(repository, build, keep_config=True)
    assert config(repository) == before["net/config.pbtxt"].decode()
    assert loaded(repository) == [1, 2]
    package(repository, build, keep_config=False)
    assert "# mine" not in config(repository)
    assert number(config(repository), "count") == 1


def test_a_kept_configuration_gets_the_new_networks_engine_cache(tmp_path):
    repository = tmp_path / "repo"
    first = plans(repository, make_build(tmp_path / "a", seed=1))
    path = repository / "net/config.pbtxt"
    path.write_text(path.read_text() + "# mine\n")
    second = plans(repository, make_build(tmp_path / "b", seed=2), keep_config=True)
    keys = [one.version.files["model.onnx"].sha256[:16] for one in (first, second)]
    assert keys[0] not in config(repository)
    assert keys[1] in config(repository)
    assert config(repository).endswith("# mine\n")
    assert loaded(repository) == [2]


def test_a_kept_configuration_may_not_batch_more_than_the_plans_take(tmp_path):
    repository = tmp_path / "repo"
    plans(repository, make_build(tmp_path / "a", builder="tensorrt"))
    path = repository / "net/config.pbtxt"
    path.write_text(path.read_text() + "# mine\n")
    before = everything(repository)
    small = with_batch(make_build(tmp_path / "b", seed=2, builder="tensorrt"), 1, 4, 16)
    with pytest.raises(ConfigError, match="max_batch_size 64 is more than 16"):
        plans(repository, small, keep_config=True)
    assert everything(repository) == before


def test_versions_share_the_smallest_of_their_largest_batches(tmp_path):
    """Triton refuses a plan whose profile is smaller than max_batch_size, and then the whole server."""
    repository = tmp_path / "repo"
    small = with_batch(make_build(tmp_path / "a", seed=1, builder="tensorrt"), 1, 4, 16)
    large = make_build(tmp_path / "b", seed=2, builder="tensorrt")
    plans(repository, small)
    with pytest.raises(ConfigError, match="64 is more than 16, the largest batch of version 1"):
        plans(repository, large, max_batch=64)
    second = plans(repository, large)
    assert number(config(repository), "max_batch_size") == 16
    assert any("version 1 takes no more" in note for note in second.notes)
    # Version 1 is no longer loaded beside the third.
    plans(repository, large)
    assert number(config(repository), "max_batch_size") == 64
    assert read_model(repository / "net").versions[0].batch == BatchRange(min=1, opt=4, max=16)


def test_removing_the_smaller_version_gives_the_batch_back(tmp_path):
    repository = tmp_path / "repo"
    plans(repository, with_batch(make_build(tmp_path / "a", seed=1, builder="tensorrt"), 1, 4, 16))
    plans(repository, make_build(tmp_path / "b", seed=2, builder="tensorrt"))
    remove_version(repository, "net", 1)
    assert number(config(repository), "max_batch_size") == 64


@pytest.mark.parametrize("change", ["files", "tensorrt"])
def test_a_version_that_cannot_run_under_the_new_configuration_is_not_loaded(tmp_path, change):
    """config.pbtxt names plan files for all versions at once, and a server has one TensorRT."""
    repository = tmp_path / "repo"
    plans(repository, make_build(tmp_path / "a", builder="tensorrt"))
    if change == "files":
        builds = [make_build(tmp_path / sm, builder="tensorrt", sm=sm) for sm in ("80", "90")]
    else:
        builds = [make_build(tmp_path / "new", builder="tensorrt", version="10.14.1.48")]
    second = plans(repository, *builds)
    assert loaded(repository) == [2]
    (note,) = [note for note in second.notes if "version 1 stays in the repository and is no longer loaded" in note]
    why = {"files": "(SM 80, SM 90)", "tensorrt": "need TensorRT 10.13.3.9, those of version 2 10.14.1.48"}
    assert why[change] in note
    roll_back(repository, "net")
    assert loaded(repository) == [1]
    assert 'default_model_filename: "model.plan"' in config(repository)


def test_removing_a_version_frees_a_full_disk(tmp_path, monkeypatch):
    """The space comes from the version itself; until then nothing can be written."""
    repository = tmp_path / "repo"
    for seed in (1, 2, 3):
        plans(repository, make_build(tmp_path / f"build{seed}", seed=seed, builder="tensorrt"))
    genuine_write, genuine_pwrite = write_atomic, os.pwrite

    def full_while_it_lies_there(path, content):
        if (repository / "net/2").exists():
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        genuine_write(path, content)

    def no_byte(handle, content, at):
        if (repository / "net/2").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return genuine_pwrite(handle, content, at)

    monkeypatch.setattr("nm2trt.serve.publish.write_atomic", full_while_it_lies_there)
    monkeypatch.setattr(os, "pwrite", no_byte)
    with pytest.raises(OSError, match="No space left"):
        roll_back(repository, "net")
    remove_version(repository, "net", 2)
    assert loaded(repository) == [1, 3]
    assert [one.version for one in read_model(repository / "net").versions] == [1, 3]


def test_onnx_runtime_on_a_gpu_loads_one_version_with_its_own_cache(tmp_path):
    repository = tmp_path / "repo"
    caches = {}
    for seed in (1, 2):
        one = plans(repository, make_build(tmp_path / str(seed), seed=seed))
        assert loaded(repository) == [seed]
        caches[seed] = re.search(r'"(/tmp/nm2trt-engines-[^"]*)"', config(repository)).group(1)
        assert caches[seed].endswith(one.version.files["model.onnx"].sha256[:16])
    assert caches[1] != caches[2]
    roll_back(repository, "net")
    assert loaded(repository) == [1]
    assert caches[1] in config(repository)
    assert caches[2] not in config(repository)


@pytest.mark.parametrize("server", ["triton", "triton-cpu"])
def test_back_and_forth(tmp_path, server):
    repository = tmp_path / "repo"
    for seed in (1, 2, 3):
        package(repository, make_build(tmp_path / str(seed), seed=seed), server=server)
    files = everything(repository / "net/3")
    assert roll_back(repository, "net").version == 3
    assert loaded(repository)[-1] == 2
    assert everything(repository / "net/3") == files
    assert roll_back(repository, "net").version == 2
    assert loaded(repository) == [1]
    before = everything(repository)
    with pytest.raises(ConfigError, match="no version before 1"):
        roll_back(repository, "net")
    assert everything(repository) == before
    package(repository, tmp_path / "2", server=server)
    # What was rolled back stays out of service.
    assert loaded(repository) == ([4] if server == "triton" else [1, 4])


def test_a_number_is_not_given_twice(tmp_path, build):
    repository = tmp_path / "repo"
    package(repository, build)
    package(repository, build)
    remove_version(repository, "net", 2)
    assert loaded(repository) == [1]
    assert not (repository / "net/2").exists()
    assert package(repository, build).version.version == 3


def test_the_last_version_and_a_missing_one_are_not_removed(tmp_path, build):
    repository = tmp_path / "repo"
    package(repository, build)
    before = everything(repository)
    with pytest.raises(ConfigError, match="the only one that can be served"):
        remove_version(repository, "net", 1)
    with pytest.raises(ConfigError, match="has no version 7; it has 1"):
        remove_version(repository, "net", 7)
    with pytest.raises(ConfigError, match="holds no model 'other'"):
        remove_version(repository, "other", 1)
    assert everything(repository) == before


@pytest.mark.parametrize("gone", [1, 2])
def test_a_version_removed_by_hand_stops_nobody(tmp_path, build, gone):
    repository = tmp_path / "repo"
    package(repository, build)
    package(repository, build)
    shutil.rmtree(repository / f"net/{gone}")
    assert loaded(repository) == [3 - gone]
    third = package(repository, build)
    assert third.version.version == 3
    assert loaded(repository) == [3 - gone, 3]
    assert any(f"version {gone} is no longer there" in note for note in third.notes)


def test_all_versions_removed_by_hand(tmp_path, build):
    repository = tmp_path / "repo"
    package(repository, build)
    shutil.rmtree(repository / "net/1")
    with pytest.raises(InputError, match="holds no version; package it again"):
        check_repository(repository)
    assert package(repository, build).version.version == 2
    assert loaded(repository) == [2]


@pytest.mark.parametrize("damaged", [1, 2])
@pytest.mark.parametrize("way", ["package", "remove", "rollback"])
def test_a_damaged_version_has_three_ways_on(tmp_path, build, damaged, way):
    repository = tmp_path / "repo"
    package(repository, build)
    package(repository, build)
    path = repository / f"net/{damaged}/model.onnx"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"package it again, or take this version away: .*--remove-version {damaged}"):
        check_repository(repository)
    if way == "package":
        package(repository, build)
        assert loaded(repository) == [3 - damaged, 3]
    elif way == "remove":
        remove_version(repository, "net", damaged)
        assert loaded(repository) == [3 - damaged]
    elif damaged == 2:
        # It cannot be served, so the one before it is what would be rolled back.
        with pytest.raises(ConfigError, match="no version before 1"):
            roll_back(repository, "net")
    else:
        with pytest.raises(ConfigError, match="no version before 2"):
            roll_back(repository, "net")


def test_the_command_line_says_what_is_served(tmp_path, build):
    repository = tmp_path / "repo"
    for _ in range(2):
        package(repository, build)
    result = nm2trt_inline("package", "-o", repository, "--rollback")
    assert result.returncode == 0, result.stderr
    assert "net: version 2 is not loaded now; served: version 1" in result.stdout
    result = nm2trt_inline("package", "-o", repository, "--name", "net", "--remove-version", "2", "--json")
    assert PackageDocument.model_validate_json(result.stdout).versions[-1].version == 1
    assert "COPY net /models/net" in (repository / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--remove-version", "1", "--rollback"), "at once"),
        (("BUILD", "--rollback"), "--rollback: takes no BUILD"),
        (("--rollback", "--instances", "2"), "--instances: does nothing with --rollback"),
        (("--remove-version", "1", "--server", "kserve"), "--server: does nothing with --remove-version"),
        ((), "no BUILD"),
    ],
)
def test_what_does_not_go_together(tmp_path, build, arguments, words):
    package(tmp_path / "repo", build)
    result = nm2trt_inline("package", "-o", tmp_path / "repo", *(build if one == "BUILD" else one for one in arguments))
    assert_one_error_line(result, 2, words)


def test_the_image_stays_too(tmp_path, build):
    image = "registry.example/tritonserver:26.07-py3"
    for options in (("--image", image), ()):
        result = nm2trt_inline("package", build, "-o", tmp_path / "repo", "--server", "triton-cpu", *options)
        assert result.returncode == 0, result.stderr
    assert f"ARG TRITON_IMAGE={image}\n" in (tmp_path / "repo/Dockerfile").read_text()


@pytest.mark.parametrize(
    ("option", "value"), [("instances", 2), ("queue_delay_us", 5), ("max_batch", 3), ("labels", "labels.txt")]
)
def test_what_a_kept_configuration_does_not_take_over_is_refused(tmp_path, build, option, value):
    repository = tmp_path / "repo"
    package(repository, build)
    (repository / "net/config.pbtxt").write_text(config(repository) + "# mine\n")
    before = everything(repository)
    given = tmp_path / value if option == "labels" else value
    with pytest.raises(ConfigError, match="changes nothing"):
        package(repository, build, keep_config=True, **{option: given})
    assert everything(repository) == before


@pytest.mark.parametrize("kind", ["empty", "renamed"])
def test_a_version_that_package_json_does_not_know_can_be_removed(tmp_path, kind):
    repository = tmp_path / "repo"
    for seed in (1, 2):
        package(repository, make_build(tmp_path / f"build{seed}", seed=seed))
    if kind == "empty":
        (repository / "net/7").mkdir()
    else:
        (repository / "net/2").rename(repository / "net/7")
    with pytest.raises(InputError, match=r"version 7 is not in package\.json.*--remove-version 7"):
        check_repository(repository)
    remove_version(repository, "net", 7)
    assert check_repository(repository) == {"net": ("python", [1, 2] if kind == "empty" else [1])}
    with pytest.raises(ConfigError, match="has no version 7"):
        remove_version(repository, "net", 7)


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_what_lies_in_a_new_versions_place_is_named(tmp_path, kind):
    repository, build = tmp_path / "repo", make_build(tmp_path / "build")
    package(repository, build)
    place = repository / "net/2"
    if kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to("nowhere")
    before = everything(repository)
    with pytest.raises(ConfigError, match="net/2: lies where the new version goes"):
        package(repository, build)
    assert everything(repository) == before
    assert package(repository, build, version=3).version.version == 3
