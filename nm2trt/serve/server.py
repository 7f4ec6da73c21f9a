"""One tritonserver process: started on loopback, waited for, stopped."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from nm2trt.errors import ConfigError, InputError, MachineError
from nm2trt.serve.installed import STAND_INS, Installed, write_backends
from nm2trt.serve.repository import CONFIG, model_folders

LOOPBACK = "127.0.0.1"
_POLL_S = 0.1
_STOP_S = 15.0
_PR_SET_PDEATHSIG = 1
_WATCH_S = 0.5
_STUB = "triton_python_b"
"""Name of the Python backend's process, as the kernel cuts it off."""
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+=@:-]+")
"""What a path may hold: the Python backend splits its command line at spaces and reads it as ASCII."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Ports of one server."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


class Server:
    """A running tritonserver. Use `start`."""

    def __init__(self, process: subprocess.Popen[bytes], ports: Ports, log: Path, *, log_start: int = 0) -> None:
        self._process = process
        self.ports = ports
        self.log = log
        self._log_start = log_start
        self._was_ready = False
        self._lost_stub = False

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        return self._process.pid

    @property
    def http_url(self) -> str:
        """Address for HTTP."""
        return f"http://{LOOPBACK}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """Address for gRPC, without a scheme."""
        return f"{LOOPBACK}:{self.ports.grpc}"

    def ended(self) -> str | None:
        """How the process ended, in words; None while it runs and can answer."""
        if self._lost_stub:
            return "lost a process of its Python backend, so that every request of that model fails"
        code = self._process.poll()
        if code is None:
            return None
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def killed(self) -> bool:
        """Whether a signal ended it, or one of its Python backend's processes."""
        code = self._process.poll()
        return self._lost_stub or (code is not None and code < 0)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until all models answer.

        Raises:
            InputError: A model does not load; the reason is the server's own.
            MachineError: The server ended, or was not ready in time (a missing library makes it hang).
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            how = self.ended()
            if how is not None:
                raise self.failure(f"tritonserver {how}")
            if self._ready():
                self._was_ready = True
                return
            time.sleep(_POLL_S)
        raise self.failure(f"tritonserver was not ready after {timeout_s:g} s")

    def wait(self) -> str:
        """Wait until the process ends by itself, or a process of its Python backend does, and say how.

        Triton goes on without that process: it reports the model as ready and fails every request.
        """
        dead: frozenset[int] = frozenset()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_WATCH_S)
                return self.ended() or ""
            before, dead = dead, dead_stubs(self._process.pid)
            # Triton reaps the process of a model that it unloads; one that stays dead was not expected to end.
            if before & dead:
                self._lost_stub = True
                return self.ended() or ""

    def stop(self) -> None:
        """Ask it to end, wait, and kill what is left of its process group."""
        try:
            if self._process.poll() is None:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_STOP_S)
        finally:
            # A second Ctrl-C comes here too. The group holds the Python backend's processes.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _ready(self) -> bool:
        # Not urllib: a proxy named in the environment would be asked for 127.0.0.1.
        connection = HTTPConnection(LOOPBACK, self.ports.http, timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (HTTPException, OSError):
            return False
        finally:
            connection.close()

    def failure(self, what: str) -> InputError | MachineError:
        """Make an error of what happened, with the reason that the server's log gives."""
        text = ""
        if self.log.is_file():
            with self.log.open("rb") as file:
                # What lies before is of earlier servers.
                file.seek(self._log_start)
                text = file.read().decode("utf-8", errors="replace")
        # Once it was ready, a model that did not load (a new version, say) is not why it ended.
        reason = None if self._was_ready else model_failure(text)
        if reason is not None:
            return InputError(reason, hint="the whole log: nm2trt serve --log FILE")
        said = [line for line in text.splitlines() if line.strip()]
        return MachineError(f"{what}: {said[-1] if said else 'it said nothing'}", hint="see --log FILE")


def dead_stubs(pid: int) -> frozenset[int]:
    """Process ids of a server's Python backend processes that ended and that it has not noticed; Linux only."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            number, _, rest = entry.read_text(encoding="utf-8", errors="replace").partition(" (")
            name, _, fields = rest.rpartition(") ")
            state, parent = fields.split()[:2]
            if state == "Z" and int(parent) == pid and name == _STUB:
                found.add(int(number))
    return frozenset(found)


def model_failure(log: str) -> str | None:
    """Find in a server's log why a model did not load; None when it names no such failure."""
    for pattern in (
        r"failed to load '([^']+)' version (\d+): (.+)",
        r"failed to read text proto from (\S+)(.*)",
        r"Poll failed for model directory '([^']+)': (.+)",
    ):
        found = re.search(pattern, log)
        if found:
            return " ".join(found.group(0).split())
    lines = [line for line in log.splitlines() if "Invalid argument" in line or "unable to find backend" in line]
    return " ".join(lines[0].split()) if lines else None


def choose_ports(http: int, grpc: int, metrics: int) -> Ports:
    """Check that the ports are free; 0 takes one that is.

    Raises:
        ConfigError: A port is in use, or named twice.
    """
    chosen: list[int] = []
    wanted: dict[int, str] = {}
    with contextlib.ExitStack() as held:
        for option, port in (("--http-port", http), ("--grpc-port", grpc), ("--metrics-port", metrics)):
            # Two sockets that do not listen yet may share a port, so that binding them does not find it out.
            if port and wanted.setdefault(port, option) != option:
                raise ConfigError(f"port {port} is already {wanted[port]}", where=option, hint="choose another, or 0")
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                raise ConfigError(f"port {port}: {error.strerror}", where=option, hint="choose another, or 0") from None
            chosen.append(probe.getsockname()[1])
    return Ports(http=chosen[0], grpc=chosen[1], metrics=chosen[2])


@contextlib.contextmanager
def start(
    installed: Installed,
    repository: Path,
    ports: Ports,
    *,
    needed: frozenset[str],
    stand_ins: frozenset[str] = frozenset(),
    poll_s: int = 0,
    log: Path | None = None,
) -> Iterator[Server]:
    """Start a server and stop it when the block ends, however it ends.

    Args:
        installed: Which server.
        repository: Model repository.
        ports: On loopback.
        needed: Backends that the repository's models name.
        stand_ins: Backends that our Python model may stand in for, on the CPU.
        poll_s: Look for new versions every so many seconds; 0: never.
        log: Where the server's log goes; None: a file that is removed afterwards.

    Raises:
        InputError: The Python backend cannot read a model's name.
        MachineError: A backend is missing.
    """
    for name in (folder.name for folder in model_folders(repository)):
        if "python" in needed and not _PLAIN_PATH.fullmatch(name):
            raise InputError(
                f"model name {name!r}: Triton's Python backend reads no spaces and no letters beyond ASCII",
                where=repository,
                hint="rename the folder, and `name` in its config.pbtxt",
            )
    lacking = installed.missing(needed)
    refused = [name for name in lacking if name not in stand_ins or name not in STAND_INS]
    if refused:
        raise MachineError(
            f"{installed.description} has no {', '.join(refused)} backend",
            where=repository,
            hint="use NVIDIA's image (REPOSITORY/Dockerfile), --stand-in, or package with --server triton-cpu",
        )
    work = _work_folder()
    try:
        repository = _lay_out(repository, work, stand_in=bool(lacking))
        arguments = _arguments(repository, ports, poll_s)
        if installed.site is not None:
            write_backends(installed, work / "backends", lacking)
            arguments.append(f"--backend-directory={work / 'backends'}")
        path = log or work / "server.log"
        log_start = path.stat().st_size if path.is_file() else 0
        server = Server(_spawn(installed, arguments, path), ports, path, log_start=log_start)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _work_folder() -> Path:
    """A temporary folder whose path the Python backend can read.

    Raises:
        MachineError: None of the usual places has such a path.
    """
    places = (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 -- mkdtemp makes the folder
    for place in places:
        if _PLAIN_PATH.fullmatch(place) and os.access(place, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="nm2trt-serve-", dir=place))
    raise MachineError(
        "Triton's Python backend needs a temporary folder whose path has no space and no letter beyond ASCII",
        where=places[0],
        hint="set TMPDIR to one",
    )


def _lay_out(repository: Path, work: Path, *, stand_in: bool) -> Path:
    """The repository under a path that the Python backend can read."""
    if stand_in:
        return on_cpu(repository, work / "repository")
    if _PLAIN_PATH.fullmatch(str(repository.resolve())):
        return repository.resolve()
    (work / "repository").symlink_to(repository.resolve())
    return work / "repository"


def on_cpu(repository: Path, target: Path) -> Path:
    """Lay out a repository for stand-ins: the same files, but instances on the CPU, where the stand-ins run."""
    for model in model_folders(repository):
        copy = target / model.name
        copy.mkdir(parents=True)
        for entry in model.iterdir():
            if entry.name == CONFIG:
                text = entry.read_text(encoding="utf-8")
                (copy / CONFIG).write_text(text.replace("kind: KIND_GPU", "kind: KIND_CPU"), encoding="utf-8")
            else:
                (copy / entry.name).symlink_to(entry.resolve())
    return target


def _arguments(repository: Path, ports: Ports, poll_s: int) -> list[str]:
    arguments = [f"--model-repository={repository}"]
    for name, port in (("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.metrics)):
        arguments += [f"--{name}-address={LOOPBACK}", f"--{name}-port={port}"]
    if poll_s:
        arguments += ["--model-control-mode=poll", f"--repository-poll-secs={poll_s}"]
    # The configuration is whole; what it leaves out must not be guessed from the model.
    return [*arguments, "--disable-auto-complete-config"]


def _spawn(installed: Installed, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            [str(installed.binary), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=installed.environment(os.environ),
            # A model.py in the working directory would be taken for the model's.
            cwd="/",
            # Ctrl-C must reach us alone, so that we end it in order.
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )


def _die_with_parent() -> None:
    """Let the kernel end the server when we are killed: nobody else would."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
