"""Runs commands in forked processes that start with PyTorch imported, so that a test pays for the command alone.

The server is a process of its own that only imports. Each command runs in a fork of it, with the caller's streams,
folder, environment and signals, and ends as any process does. `helpers.nm2trt` is the client, and
`support/fork_client.py` where another program starts the processes.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

READ_AT_IMPORT = (
    "PYTHON",
    "LD_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "TORCH",
    "CUDA_",
    "NVIDIA_",
    "MPL",
    "HOME",
)
"""Beginnings of variables that Python or a library reads once: a command that changes one gets a fresh process."""

_PRELOADED = (
    "torch",
    "torch.onnx",
    "torch.export",
    "torch._dynamo",
    "torch.distributed.run",
    "torchvision",
    "accelerate",
    "jinja2",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "onnx.reference",
    "onnx_ir.passes.common",
    "onnxruntime",
    "onnxscript.optimizer",
    "pydantic",
    "safetensors.torch",
    "scipy.stats",
    "sklearn.datasets",
    "sklearn.model_selection",
    "tomli_w",
)


class CommandServers:
    """One server for each set of variables that are read at import, from its second command on."""

    def __init__(self) -> None:
        self._servers: dict[tuple[tuple[str, str], ...], CommandServer | None] = {}
        self._owner = os.getpid()

    def find(self, environment: dict[str, str]) -> CommandServer | None:
        """A server whose forks see what a fresh process sees; None means that a fresh process is cheaper."""
        if self._owner != os.getpid():
            # A fork of pytest shares the connections, not the right to end the servers.
            self.__init__()
        key = _read_at_import(environment)
        if key not in self._servers:
            self._servers[key] = None
            return None
        return self._servers[key] or self.start(environment)

    def start(self, environment: dict[str, str]) -> CommandServer:
        """A server for these variables, started where there is none yet."""
        if self._owner != os.getpid():
            self.__init__()
        key = _read_at_import(environment)
        server = self._servers.get(key)
        if server is None:
            server = self._servers[key] = CommandServer(environment)
        return server


def _read_at_import(environment: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in environment.items() if name.startswith(READ_AT_IMPORT)))


class CommandServer:
    """The client's side of one server."""

    def __init__(self, environment: dict[str, str]) -> None:
        flags = ["-P"] if sys.version_info >= (3, 11) else []
        self._process = subprocess.Popen(
            [sys.executable, *flags, __file__],
            stdin=subprocess.PIPE,  # kept open: the server ends when this process does
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.address = self._process.stdout.readline().strip()
        self._process.stdout.close()
        if not self.address:
            raise RuntimeError("the command server did not start")

    def run(self, arguments: list[str], *, cwd: Path | str | None, environment: dict[str, str], timeout_s: float):
        """The completed command, with its output as text."""
        request = {"arguments": arguments, "cwd": str(cwd or Path.cwd()), "environment": environment}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(f"\0{self.address}")
                streams = array.array("i", [out.fileno(), err.fileno()])
                connection.sendmsg([b"2"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
                connection.sendall(json.dumps(request).encode() + b"\n")
                # The command is killed when the connection closes.
                connection.settimeout(timeout_s)
                try:
                    answer = connection.makefile("rb").readline()
                except TimeoutError:
                    raise subprocess.TimeoutExpired(arguments, timeout_s) from None
            if not answer:
                raise RuntimeError(f"the command server ended while it ran {arguments}")
            out.seek(0)
            err.seek(0)
            texts = [file.read().decode().replace("\r\n", "\n") for file in (out, err)]
        return subprocess.CompletedProcess(arguments, int(answer), *texts)


def serve() -> None:
    """Fork for each connection until stdin closes."""
    import importlib
    import select

    for name in _PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(Exception):
        # The table of ONNX functions that every export by torch builds, two seconds of work.
        importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry.from_torchlib()
    importlib.import_module("nm2trt.cli.main")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # An abstract address: no file that a fork's clean-up at exit could take away.
    name = f"nm2trt-commands-{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0{name}")
    listener.listen()
    sys.stdout.write(f"{name}\n")
    sys.stdout.flush()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _supervise(connection)
        connection.close()


def _supervise(connection: socket.socket) -> None:
    """Run one command in a fork, pass signals on, answer its exit code, and kill it when the caller is gone."""
    import select

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(8))
    streams = array.array("i")
    streams.frombytes(ancillary[0][2])
    received = b""
    while b"\n" not in received:
        part = connection.recv(65536)
        if not part:
            os._exit(1)
        received += part
    line, _, signals = received.partition(b"\n")
    child = os.fork()
    if child == 0:
        connection.close()
        os.setpgid(0, 0)
        _become(json.loads(line), list(streams))
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    for stream in streams:
        os.close(stream)
    watch = os.pidfd_open(child)
    while True:
        for number in signals:
            os.kill(child, number)
        ready, _, _ = select.select([watch, connection], [], [])
        if watch in ready:
            break
        signals = connection.recv(16)
        if not signals:
            os.killpg(child, signal.SIGKILL)
            break
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(request: dict, streams: list[int]) -> None:
    """Be `python -P -m nm2trt ARGUMENTS`, or `python` with the arguments under that name."""
    empty = os.open(os.devnull, os.O_RDONLY)
    for number, stream in enumerate([empty, *streams]):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 -- this process's own, until it ends
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _seed_anew()
    code: object = 1
    try:
        if "python" in request:
            _run_python(request["python"])
        else:
            from nm2trt.cli.main import main

            sys.argv = ["nm2trt", *request["arguments"]]
            main()
        code = 0
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            sys.stderr.write(f"{code}\n")
    except BaseException:  # noqa: BLE001 -- the outermost frame
        import traceback

        traceback.print_exc()
    finally:
        import atexit

        # What a normal exit does, in its order; os._exit, since the server's own clean-up is not this process's.
        import threading

        threading._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _run_python(arguments: list[str]) -> None:
    """Run a module or a script as the main program; the Python processes that it starts are forks, too."""
    import itertools
    import runpy

    sys.executable = os.environ["NM2TRT_TEST_LAUNCHER"]
    rest = [*itertools.dropwhile(lambda one: one in ("-u", "-P"), arguments)]
    folders = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one and one not in sys.path]
    sys.path[:0] = folders
    if rest[0] == "-m":
        if "-P" not in arguments[: arguments.index("-m")]:
            sys.path.insert(0, str(Path.cwd()))
        sys.argv = rest[1:]
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(rest[0]).resolve().parent))
        sys.argv = rest
        runpy.run_path(rest[0], run_name="__main__")


def _seed_anew() -> None:
    """A fresh process draws its own random numbers."""
    import random
    import tempfile as names

    random.seed()
    names._name_sequence = None
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


if __name__ == "__main__":
    serve()
