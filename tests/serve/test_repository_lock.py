"""Several writers in one repository."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest
from serve_builds import make_build

from nm2trt.artifacts import sha256_of
from nm2trt.errors import ConfigError
from nm2trt.serve import PackageRequest, check_repository, package_triton, read_model
from nm2trt.serve.lock import LOCK, locked

WAIT_S = 60


def _package(barrier, build, repository, name):
    barrier.wait(WAIT_S)
    package_triton(PackageRequest(builds=(build,), repository=repository, name=name, server="triton-cpu"))


@pytest.mark.parametrize("names", [("net", "net", "net"), ("a", "b", "c")])
@pytest.mark.parametrize("fresh", [True, False])
def test_all_of_several_writers_succeed(tmp_path, names, fresh):
    repository = tmp_path / "deep/repo"
    builds = [make_build(tmp_path / str(seed), seed=seed) for seed in range(len(names))]
    if not fresh:
        package_triton(PackageRequest(builds=(builds[0],), repository=repository, name=names[0], server="triton-cpu"))
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(names))
    processes = [
        context.Process(target=_package, args=(barrier, build, repository, name))
        for build, name in zip(builds, names, strict=True)
    ]
    for one in processes:
        one.start()
    for one in processes:
        one.join(WAIT_S)
    assert [one.exitcode for one in processes] == [0] * len(names)
    check_repository(repository)
    written = [
        version.files["model.onnx"].sha256
        for name in sorted(set(names))
        for version in read_model(repository / name).versions
    ]
    assert {sha256_of(build / "model.onnx") for build in builds} == set(written)
    assert len(written) == len(names) + (not fresh)
    assert not (repository / LOCK).exists()


def test_a_writer_waits_and_says_for_whom(tmp_path):
    told, got = [], threading.Event()

    def second():
        with locked(tmp_path / "repo", on_wait=told.append):
            got.set()

    with locked(tmp_path / "repo"):
        thread = threading.Thread(target=second)
        thread.start()
        while not told:
            time.sleep(0.01)
        assert not got.is_set()
    thread.join(WAIT_S)
    assert got.is_set()
    assert len(told) == 1
    assert f"process {os.getpid()} on " in told[0]


def test_a_writer_gives_up_in_one_line(tmp_path):
    with locked(tmp_path / "repo"):
        (tmp_path / "repo/kept").touch()
        refused = pytest.raises(ConfigError, match="another nm2trt package is writing here")
        with refused as caught, locked(tmp_path / "repo", wait_s=0):
            pass
        assert "\n" not in str(caught.value)


def test_a_killed_writers_lock_is_taken_over(tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom nm2trt.serve.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "repo")], check=False)
    assert (tmp_path / "repo" / LOCK).is_file()
    with locked(tmp_path / "repo", wait_s=0):
        pass
    assert not (tmp_path / "repo" / LOCK).exists()


def test_a_lock_that_nobody_holds_is_no_lock(tmp_path):
    (tmp_path / LOCK).write_text("process 1 on elsewhere\n")
    with locked(tmp_path, wait_s=0):
        assert f"process {os.getpid()}" in (tmp_path / LOCK).read_text()


def test_nothing_is_left_where_nothing_was_written(tmp_path):
    with pytest.raises(ConfigError), locked(tmp_path / "a/b"):
        raise ConfigError("no")
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a/b"):
        (tmp_path / "a/b/file").touch()
    assert (tmp_path / "a/b/file").is_file()


def test_a_file_is_no_repository(tmp_path):
    (tmp_path / "repo").touch()
    with pytest.raises(ConfigError, match="is a file"), locked(tmp_path / "repo"):
        pass
