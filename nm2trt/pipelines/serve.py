"""Serve a model repository with the Triton of this machine."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nm2trt._version import __version__
from nm2trt.errors import ConfigError
from nm2trt.pipelines.progress import ignore_progress
from nm2trt.serve import check_repository
from nm2trt.serve.installed import STAND_INS, Installed, find_triton
from nm2trt.serve.server import Server, choose_ports, start

__all__ = ["NoteKind", "Notes", "ServeConfig", "ServedRepository", "serve_repository"]

NoteKind = Literal["detail", "note", "warning"]
Notes = Callable[[str, NoteKind], object]
"""Called with a line about what is going on, and how much it matters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """How a repository is served, on 127.0.0.1."""

    http_port: int = 8000
    """0: any that is free; so of the other ports."""
    grpc_port: int = 8001
    metrics_port: int = 8002
    timeout_s: float = 60.0
    """Until every model is ready."""
    poll_s: int = 0
    """Load new versions every so many seconds; 0: never."""
    restarts: int = 3
    """How often a server that was killed is started again."""
    stand_in: bool = False
    """Run model.onnx on the CPU where the server lacks a backend."""
    log: Path | None = None
    """Keeps the server's log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRepository:
    """A server that is ready."""

    http: str
    """URL."""
    grpc: str
    """HOST:PORT."""
    metrics: str
    pid: int
    models: Mapping[str, list[int]]
    """Model -> versions that are loaded."""

    def to_json(self) -> str:
        """The same with schema and version, indented."""
        document = {
            "schema": "nm2trt.serve/1",
            "nm2trt_version": __version__,
            "http": self.http,
            "grpc": self.grpc,
            "metrics": self.metrics,
            "pid": self.pid,
            "models": dict(self.models),
        }
        return json.dumps(document, indent=2)


def serve_repository(
    repository: Path,
    config: ServeConfig | None = None,
    *,
    on_ready: Callable[[ServedRepository], object] | None = None,
    on_note: Notes | None = None,
) -> ServedRepository | None:
    """Serve until Ctrl-C or SIGTERM; a server that was killed is started again.

    Args:
        repository: What `package_build` wrote.
        config: Ports, waiting time, restarts.
        on_ready: Called once, when every model answers.
        on_note: Told what goes on beside that.

    Returns:
        What was served; None where it was stopped before it was ready.

    Raises:
        ConfigError: A port is taken, or an option has no effect.
        InputError: The repository cannot be served, or a model does not load.
        MachineError: There is no Triton, it was not ready in time, or it ended and no restart was left.

    Example:
        >>> from nm2trt.errors import InputError
        >>> try:
        ...     serve_repository(Path("no-repository"))
        ... except InputError as error:
        ...     print(error.what)
        no such folder
    """
    config, note = config or ServeConfig(), on_note or ignore_progress
    if not math.isfinite(config.timeout_s):
        raise ConfigError(f"{config.timeout_s} is no time", where="--timeout", hint="give seconds")
    models = check_repository(repository)
    installed = find_triton()
    ports = choose_ports(config.http_port, config.grpc_port, config.metrics_port)
    needed = frozenset(backend for backend, _ in models.values())
    note(installed.description, "detail")
    strangers = [name for name in models if not (repository / name / "package.json").is_file()]
    if strangers:
        names = ", ".join(map(repr, strangers))
        note(f"{names} was not packaged by nm2trt: its files are not checked", "warning")
    stand_ins = _stand_ins(installed, needed, note) if config.stand_in else frozenset[str]()
    return _serve(
        lambda: start(
            installed, repository, ports, needed=needed, stand_ins=stand_ins, poll_s=config.poll_s, log=config.log
        ),
        {name: versions for name, (_, versions) in models.items()},
        config,
        on_ready or ignore_progress,
        note,
    )


def _stand_ins(installed: Installed, needed: frozenset[str], note: Notes) -> frozenset[str]:
    """Backends that ONNX Runtime may stand in for; refused where none of them is missing."""
    replaced = sorted(set(installed.missing(needed)) & set(STAND_INS))
    if not replaced:
        raise ConfigError(
            f"no effect: {', '.join(sorted(needed))} runs by itself here", where="--stand-in", hint="drop it"
        )
    note(
        f"stand-in for {', '.join(replaced)}: ONNX Runtime on the CPU runs model.onnx, not the engine",
        "warning",
    )
    return frozenset(STAND_INS)


def _serve(
    start_server: Callable[[], contextlib.AbstractContextManager[Server]],
    models: dict[str, list[int]],
    config: ServeConfig,
    on_ready: Callable[[ServedRepository], object],
    note: Notes,
) -> ServedRepository | None:
    """Serve until somebody stops it; a server that was killed is started again."""
    served = None
    for attempt in range(config.restarts + 1):
        with start_server() as server:
            # Ctrl-C and SIGTERM (the command line makes it the same) end the block, which stops the server.
            with contextlib.suppress(KeyboardInterrupt):
                server.wait_until_ready(config.timeout_s)
                served = _describe(server, models)
                if attempt == 0:
                    on_ready(served)
                else:
                    note(f"ready again, process {server.pid}", "note")
                how = server.wait()
                if not server.killed():
                    raise server.failure(f"tritonserver {how}")
                again = f"starting it again ({attempt + 1} of {config.restarts})"
                left = again if attempt < config.restarts else "no restarts are left"
                note(f"tritonserver {how}; {left}", "warning")
                if attempt == config.restarts:
                    raise server.failure(f"tritonserver {how}")
                continue
            note("stopping", "detail")
        break
    return served


def _describe(server: Server, models: dict[str, list[int]]) -> ServedRepository:
    return ServedRepository(
        http=server.http_url,
        grpc=server.grpc_url,
        metrics=f"http://127.0.0.1:{server.ports.metrics}/metrics",
        pid=server.pid,
        models=models,
    )
