"""Ports, logs and processes of `nm2trt serve`, with a process that is no server; a real one is in test_real_server."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from nm2trt.errors import ConfigError, InputError, MachineError
from nm2trt.serve.installed import Installed
from nm2trt.serve.server import Ports, Server, _work_folder, choose_ports, dead_stubs, start

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="missing: Linux's /proc")


def server_of(code, log, **options):
    process = subprocess.Popen([sys.executable, "-c", code])
    return process, Server(process, Ports(), log, **options)


def test_a_port_is_named_once():
    ports = choose_ports(0, 0, 0)
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    with pytest.raises(ConfigError, match=f"--grpc-port: port {ports.http} is already --http-port"):
        choose_ports(ports.http, ports.http, 0)
    with pytest.raises(ConfigError, match=f"--metrics-port: port {ports.http} is already --http-port"):
        choose_ports(ports.http, 0, ports.http)


def test_an_earlier_servers_failure_is_not_this_ones(tmp_path):
    log = tmp_path / "log"
    log.write_text("E failed to load 'other' version 1: Internal: of yesterday\n")
    start = log.stat().st_size
    process, server = server_of("import time; time.sleep(60)", log, log_start=start)
    process.send_signal(signal.SIGKILL)
    assert server.wait() == "was killed by SIGKILL"
    error = server.failure(f"tritonserver {server.ended()}")
    assert isinstance(error, MachineError)
    assert "was killed by SIGKILL: it said nothing" in str(error)
    with log.open("a") as file:
        file.write("E failed to load 'mine' version 2: Internal: of today\n")
    error = server.failure(f"tritonserver {server.ended()}")
    assert isinstance(error, InputError)
    assert "failed to load 'mine'" in str(error)
    assert "other" not in str(error)


@linux_only
def test_a_dead_python_stub_is_noticed(tmp_path):
    # A child that nobody waits for, under the name that the kernel shows of Triton's own.
    code = """
import ctypes, os, time
child = os.fork()
if child == 0:
    ctypes.CDLL(None).prctl(15, b"triton_python_backend_stub", 0, 0, 0)
    time.sleep(0.7)
    os._exit(1)
time.sleep(60)
"""
    process, server = server_of(code, tmp_path / "log")
    try:
        began = time.monotonic()
        how = server.wait()
        assert "lost a process of its Python backend" in how
        assert time.monotonic() - began < 30
        assert server.killed()
        assert process.poll() is None
        assert len(dead_stubs(process.pid)) == 1
        assert dead_stubs(os.getpid()) == frozenset()
    finally:
        process.kill()
        process.wait()


def test_names_that_the_python_backend_cannot_read(tmp_path, monkeypatch):
    (tmp_path / "repo/a b").mkdir(parents=True)
    (tmp_path / "repo/a b/config.pbtxt").write_text('backend: "python"')
    installed = Installed(binary=tmp_path / "none", description="none")
    with (
        pytest.raises(InputError, match="model name 'a b'"),
        start(installed, tmp_path / "repo", Ports(), needed=frozenset({"python"})),
    ):
        pass
    (tmp_path / "t ü").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t ü"))
    folder = _work_folder()
    folder.rmdir()
    assert folder.parent != tmp_path / "t ü"
    assert " " not in str(folder)
