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
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nm2trt.errors import ConfigError, InputError, MachineError
from nm2trt.serve.installed import STAND_INS, Installed, write_backends
from nm2trt.serve.repository import CONFIG, model_folders

LOOPBACK = "127.0.0.1"
_POLL_S = 0.1
_STOP_S = 15.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Ports of one server."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


class Server:
    """A running tritonserver. Use `start`."""

    def __init__(self, process: subprocess.Popen[bytes], ports: Ports, log: Path) -> None:
        self._process = process
        self.ports = ports
        self.log = log

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
        """How the process ended, in words; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def killed(self) -> bool:
        """Whether a signal ended it."""
        code = self._process.poll()
        return code is not None and code < 0

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
                return
            time.sleep(_POLL_S)
        raise self.failure(f"tritonserver was not ready after {timeout_s:g} s")

    def wait(self) -> str:
        """Wait until the process ends by itself, and say how it did."""
        self._process.wait()
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
        try:
            with urllib.request.urlopen(f"{self.http_url}/v2/health/ready", timeout=2) as answer:  # noqa: S310 -- loopback
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def failure(self, what: str) -> InputError | MachineError:
        """Make an error of what happened, with the reason that the server's log gives."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        reason = model_failure(text)
        if reason is not None:
            return InputError(reason, mend="the whole log: nm2trt serve --log FILE")
        said = [line for line in text.splitlines() if line.strip()]
        return MachineError(f"{what}: {said[-1] if said else 'it said nothing'}", mend="see --log FILE")


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
    with contextlib.ExitStack() as held:
        for option, port in (("--http-port", http), ("--grpc-port", grpc), ("--metrics-port", metrics)):
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                raise ConfigError(f"port {port}: {error.strerror}", where=option, mend="choose another, or 0") from None
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
        MachineError: A backend is missing.
    """
    lacking = installed.missing(needed)
    refused = [name for name in lacking if name not in stand_ins or name not in STAND_INS]
    if refused:
        raise MachineError(
            f"{installed.description} has no {', '.join(refused)} backend",
            where=repository,
            mend="use NVIDIA's image (REPOSITORY/Dockerfile), --stand-in, or package with --server triton-cpu",
        )
    work = Path(tempfile.mkdtemp(prefix="nm2trt-serve-"))
    try:
        if lacking:
            repository = on_cpu(repository, work / "repository")
        arguments = _arguments(repository, ports, poll_s)
        if installed.site is not None:
            write_backends(installed, work / "backends", lacking)
            arguments.append(f"--backend-directory={work / 'backends'}")
        path = log or work / "server.log"
        server = Server(_spawn(installed, arguments, path), ports, path)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(work, ignore_errors=True)


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
    arguments = [f"--model-repository={repository.resolve()}"]
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
