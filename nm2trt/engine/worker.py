"""The process that builds one engine: `python -m nm2trt.engine.worker JOB.json`.

Polygraphy chooses between TensorRT and TensorRT-RTX once, when it is imported, so every build gets a process of
its own. It also keeps the builder's crashes and prints away from the command line. The answer goes to the
stdout that the process was started with; everything else that is printed goes to the job's log.
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, cast

from nm2trt.artifacts import write_atomic
from nm2trt.engine.job import Backend, EngineJob, RefitJob, WorkerAnswer
from nm2trt.engine.timing_cache import TimingCacheFile, keep_timing_cache, start_timing_cache
from nm2trt.engine.worker_log import explain, refused_nodes
from nm2trt.engine.worker_progress import progress_monitor
from nm2trt.engine.worker_refit import refit
from nm2trt.errors import Nm2trtError
from nm2trt.tensorrt_api import keep_log, load_engine, load_tensorrt, make_runtime, present_sm, require
from nm2trt.tensorrt_api.types import IBuilderConfig, Tensorrt

_RTX_VARIABLE = "POLYGRAPHY_USE_TENSORRT_RTX"


def main(arguments: list[str]) -> int:
    """Answer a probe (`--probe BACKEND`), refit (`--refit JOB.json`) or build one job."""
    answer_fd = os.dup(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if arguments[:1] == ["--probe"]:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        answer = _answered(lambda: probe(_backend(arguments[1])))
    elif arguments[:1] == ["--refit"]:
        refit_job = RefitJob.model_validate_json(Path(arguments[1]).read_bytes())
        answer = _logged(refit_job.log, lambda: refit(refit_job))
    else:
        job = EngineJob.model_validate_json(Path(arguments[0]).read_bytes())
        answer = _logged(job.log, lambda: build(job, answer_fd))
    with os.fdopen(answer_fd, "w", encoding="utf-8") as stream:
        stream.write(answer.model_dump_json())
    return 0


def probe(backend: Backend) -> WorkerAnswer:
    """Ask the installed library for its version and the compute capabilities it can target."""
    trt = _library(backend)
    members = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    targets = [name[2:] for name in members if re.fullmatch(r"SM\d+", name)]
    return WorkerAnswer(version=str(trt.__version__), targets=targets)


def build(job: EngineJob, progress_fd: int) -> WorkerAnswer:
    """Build one engine and write its plan, and its layers where a GPU lets them be read.

    Args:
        job: What to build.
        progress_fd: File descriptor that progress lines are written to.

    Raises:
        OSError: A file cannot be written.
        Exception: As polygraphy and TensorRT raise.
    """
    trt = _library(job.backend)
    from polygraphy.backend.trt import EngineBytesFromNetwork, NetworkFromOnnxPath
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.ULTRA_VERBOSE
    create_config = _config(job, trt, progress_monitor(trt, progress_fd))
    cache = _cache_file(job, trt)
    kept: list[Any] = []
    used: list[str] = []

    def config(builder: Any, network: Any) -> IBuilderConfig:
        # The configuration is asked again after the build, and lives no longer than its builder.
        kept[:] = [builder, network, create_config(builder, network)]
        made: IBuilderConfig = kept[-1]
        if cache is not None:
            used.append(start_timing_cache(made, cache))
        return made

    started = time.perf_counter()
    network = _network(job, NetworkFromOnnxPath)
    plan = bytes(EngineBytesFromNetwork(network, config=config)())
    seconds = time.perf_counter() - started
    write_atomic(job.plan, plan)
    built: IBuilderConfig = kept[-1]
    flags = [name for name, flag in trt.BuilderFlag.__members__.items() if built.get_flag(flag)]
    if cache is not None:
        used.append(keep_timing_cache(built, cache))
    note = _inspect(job, trt, plan) if job.backend == "tensorrt" else ""
    return WorkerAnswer(
        version=str(trt.__version__),
        flags=sorted(flags),
        sm=job.sm or present_sm() or "",
        seconds=seconds,
        note=note,
        timing_cache=", ".join(filter(None, used)) or _why_no_cache(job),
    )


def _answered(work: Callable[[], WorkerAnswer]) -> WorkerAnswer:
    try:
        return work()
    except OSError as error:
        return WorkerAnswer(error=str(error), errno=error.errno, filename=str(error.filename or ""))
    except Nm2trtError as error:
        return WorkerAnswer(error=error.what)
    except BaseException as error:  # noqa: BLE001 -- polygraphy's fatal errors are no Exceptions everywhere; all are told
        return WorkerAnswer(error=f"{type(error).__name__}: {error}")


def _logged(log: Path, work: Callable[[], WorkerAnswer]) -> WorkerAnswer:
    """Do the work with everything that is printed going to the log, and take the error from there."""
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    # What a process that is killed had not written would be lost, and that is where the reason stands.
    cast(TextIO, sys.stdout).reconfigure(line_buffering=True)  # type: ignore[attr-defined]
    faulthandler.enable(file=2)
    answer = _answered(work)
    if answer.error is None or answer.errno is not None:
        return answer
    sys.stdout.flush()
    text = log.read_text(encoding="utf-8", errors="replace")
    return answer.model_copy(update={"error": explain(text, answer.error), "parser_refused": bool(refused_nodes(text))})


def _backend(text: str) -> Backend:
    if text not in ("tensorrt", "tensorrt-rtx"):
        raise ValueError(text)
    return "tensorrt" if text == "tensorrt" else "tensorrt-rtx"


def _library(backend: Backend) -> Tensorrt:
    """Import the backend; also points polygraphy, which is not imported yet, at it."""
    os.environ[_RTX_VARIABLE] = "1" if backend == "tensorrt-rtx" else "0"
    return load_tensorrt(backend)


def _network(job: EngineJob, loader: Any) -> Any:
    # TensorRT 11 and RTX know only strongly typed networks; 10 has to be told.
    return loader(str(job.onnx), strongly_typed=True) if job.backend == "tensorrt" else loader(str(job.onnx))


def _cache_file(job: EngineJob, trt: Tensorrt) -> TimingCacheFile | None:
    """The timing cache of this job; None where none is used."""
    if job.backend == "tensorrt-rtx" or job.timing_cache is None:
        return None
    return TimingCacheFile.of(job.timing_cache, version=trt.__version__, gpu=job.gpu)


def _why_no_cache(job: EngineJob) -> str:
    return "not used: TensorRT-RTX chooses no kernels when it builds" if job.backend == "tensorrt-rtx" else "none"


def _config(job: EngineJob, trt: Tensorrt, monitor: Any) -> Callable[[Any, Any], Any]:
    """The builder's configuration.

    STRICT_NANS is never set, since it forbids sparse kernels; nor is hardware compatibility, which takes away tactics.
    """
    from polygraphy.backend.trt import Profile

    profile = Profile()
    for name, (smallest, optimal, largest) in job.profile.items():
        profile.add(name, smallest, optimal, largest)
    common: dict[str, Any] = {
        "profiles": [profile],
        "sparse_weights": job.variant == "sparse",
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        "progress_monitor": monitor,
        "refittable": job.refittable,
        "builder_optimization_level": job.optimization_level,
    }
    if job.workspace_bytes is not None:
        common["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: job.workspace_bytes}
    create: Callable[[Any, Any], Any]
    if job.backend == "tensorrt-rtx":
        from polygraphy.backend.tensorrt_rtx.config import CreateConfigRTX

        if job.sm is not None:
            common["compute_capabilities"] = [(int(job.sm[:-1]), int(job.sm[-1]))]
        else:
            common["use_gpu"] = True
        create = CreateConfigRTX(**common)
        return create
    from polygraphy.backend.trt import CreateConfig

    # TF32 is TensorRT's own default, which polygraphy turns off and RTX keeps.
    create = CreateConfig(tf32=True, **common)
    return create


def _inspect(job: EngineJob, trt: Tensorrt, plan: bytes) -> str:
    """Write the engine inspector's layers; the plan is this process's own, made a moment ago.

    Returns:
        Why there are none, "" where there are: an engine that cannot be inspected is an engine all the same.
    """
    log = keep_log(trt)
    try:
        engine = load_engine(make_runtime(trt, log), plan, log, where=job.plan)
        inspector = require(engine.create_engine_inspector(), "TensorRT made no engine inspector", log)
    except Nm2trtError as error:
        return f"the layers could not be inspected: {error.what}"
    write_atomic(job.layers, str(inspector.get_engine_information(trt.LayerInformationFormat.JSON)))
    return ""


def _die_with_parent() -> None:
    """End when the parent's end of stdin closes, so that a killed command leaves no build behind."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
