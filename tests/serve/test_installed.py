import json
import stat
import sys

import pytest
from helpers import assert_one_error_line, nm2trt_inline

from nm2trt.errors import ConfigError, MachineError
from nm2trt.serve.installed import find_triton
from nm2trt.serve.server import choose_ports, model_failure


def fake_environment(folder, **answer):
    """A folder that looks like a virtual environment whose Python gives this answer."""
    site = folder / "site"
    values = {"site": str(site), "python": "3.11", "lib": "/lib", "pytriton": "0.7.0", "numpy": "1.26.4"}
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho '{json.dumps({**values, 'onnxruntime': '1.32.0', **answer})}'\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    binary = site / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    binary.parent.mkdir(parents=True)
    binary.touch()
    return folder


def find(folder):
    return find_triton({"NM2TRT_TRITON": str(folder)})


def test_an_environment_with_pytriton(tmp_path):
    found = find(fake_environment(tmp_path / "venv"))
    assert found.binary.name == "tritonserver"
    assert found.missing({"python", "tensorrt"}) == ["tensorrt"]
    environment = found.environment({"PATH": "/bin", "HOME": "/h"})
    # Python's own library folder first: another libpython would be taken for it.
    assert environment["LD_LIBRARY_PATH"].split(":")[0] == "/lib"
    assert environment["PATH"].startswith(str(tmp_path / "venv/bin"))
    assert environment["PYTHONPATH"] == str(tmp_path / "venv/site")
    assert environment["HOME"] == "/h"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"numpy": "2.1.0"}, "numpy 2.1.0: with numpy 2 this server returns empty outputs"),
        ({"numpy": ""}, "has numpy none"),
        ({"onnxruntime": ""}, "has no onnxruntime"),
        ({"pytriton": ""}, "holds no nvidia-pytriton"),
    ],
)
def test_an_environment_that_cannot_serve(tmp_path, answer, words):
    with pytest.raises(MachineError, match=words):
        find(fake_environment(tmp_path / "venv", **answer))


def test_a_named_place_without_a_server(tmp_path):
    with pytest.raises(MachineError, match="is no virtual environment"):
        find(tmp_path)


def test_a_whole_triton_keeps_its_own_surroundings(tmp_path):
    binary = tmp_path / "tritonserver"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    for environment in ({"NM2TRT_TRITON": str(binary)}, {"PATH": str(tmp_path)}):
        found = find_triton(environment)
        assert found.binary == binary
        assert found.missing({"tensorrt", "onnxruntime"}) == []
        assert found.environment({"PATH": "/bin"}) == {"PATH": "/bin"}


def test_without_any_the_line_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MachineError, match="make triton") as caught:
        find_triton({"PATH": str(tmp_path)})
    assert caught.value.exit_code == 4


def test_ports():
    import socket

    ports = choose_ports(0, 0, 0)
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"--grpc-port: port \d+: Address already in use; choose another, or 0"):
            choose_ports(0, taken.getsockname()[1], 0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "E1123 10:00:00.1 1 model_lifecycle.cc:654] \"failed to load 'net' version 1: Internal: broken\"",
            "failed to load 'net' version 1: Internal: broken",
        ),
        (
            (
                "E1123 10:00:00.1 1 model_repository_manager.cc:1460] \"Poll failed for model directory 'net': "
                'failed to open text file"'
            ),
            "Poll failed for model directory 'net'",
        ),
        ("I1123 10:00:00.1 1 server.cc:604] ready", None),
        ("", None),
    ],
)
def test_the_reason_is_found_in_the_log(line, words):
    found = model_failure(f"I1123 something\n{line}\nI1123 else\n")
    assert found == words if words is None else words in found


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("sleep 60", "was not ready after 1 s"),
        ("echo 'error while loading shared libraries: libx.so'; exit 127", "shared libraries: libx.so"),
        ("kill -SEGV $$", "was killed by SIGSEGV"),
    ],
)
def test_a_server_that_does_not_come_up(tmp_path, monkeypatch, program, words):
    binary = tmp_path / "tritonserver"
    binary.write_text(f"#!/bin/sh\n{program}\n")
    binary.chmod(0o755)
    (tmp_path / "repo/net/1").mkdir(parents=True)
    (tmp_path / "repo/net/config.pbtxt").write_text('backend: "python"\n')
    monkeypatch.setenv("NM2TRT_TRITON", str(binary))
    options = [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")]
    result = nm2trt_inline("serve", tmp_path / "repo", "--timeout", "1", *options)
    assert_one_error_line(result, 4, words)
    assert "'net' was not packaged by nm2trt" in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="missing: Linux, whose kernel ends a server with its parent")
def test_a_server_dies_with_its_parent(tmp_path):
    import os
    import signal
    import subprocess
    import time

    binary = tmp_path / "tritonserver"
    binary.write_text(
        f"#!{sys.executable}\nimport time, pathlib, os\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    binary.chmod(0o755)
    (tmp_path / "repo/net/1").mkdir(parents=True)
    (tmp_path / "repo/net/config.pbtxt").write_text('backend: "python"\n')
    options = [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")]
    process = subprocess.Popen(
        [sys.executable, "-m", "nm2trt", "serve", str(tmp_path / "repo"), *options],
        env={**os.environ, "NM2TRT_TRITON": str(binary)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    pid = int((tmp_path / "pid").read_text())
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        os.kill(pid, signal.SIGKILL)
        pytest.fail("the server outlived its parent")
