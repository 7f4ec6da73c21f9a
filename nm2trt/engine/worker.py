"""The process that builds one engine: `python -m nm2trt.engine.worker JOB.json`.

Polygraphy chooses between TensorRT and TensorRT-RTX once, when it is imported, so every build gets a process of
its own. It also keeps the builder's crashes and prints away from the command line. The answer goes to the
stdout that the process was started with; everything else that is printed goes to the job's log.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nm2trt.artifacts import write_atomic
from nm2trt.engine.job import Backend, EngineJob, RefitJob, WorkerAnswer
from nm2trt.engine.worker_progress import progress_monitor

_RTX_VARIABLE = "POLYGRAPHY_USE_TENSORRT_RTX"
_PARSER_ERROR = re.compile(r"^.*?In node (\d+) with name: (.*?) and operator: (\S+) \(\w+\): (.*)$", re.MULTILINE)
_ERROR_LINE = re.compile(r"^\[[E!]\] (.*)$", re.MULTILINE)
_HARMLESS = re.compile(
    # Polygraphy's lazy importer asks for plain TensorRT before it looks at its own RTX switch.
    r"Module: 'tensorrt' is required"
    # The parser's multi-line report of what the one-line form says again.
    r"|ModelImporter\.cpp"
    # RTX looks for a GPU in passing; it builds without one.
    r"|cudaError 35"
)


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
    known = _known_timings(job)
    create_config = _config(job, trt, progress_monitor(trt, progress_fd), known)
    kept: list[Any] = []

    def config(builder: Any, network: Any) -> Any:
        # The configuration is asked again after the build, and lives no longer than its builder.
        kept[:] = [builder, network, create_config(builder, network)]
        return kept[-1]

    started = time.perf_counter()
    network = _network(job, NetworkFromOnnxPath)
    plan = bytes(EngineBytesFromNetwork(network, config=config)())
    seconds = time.perf_counter() - started
    write_atomic(job.plan, plan)
    flags = [name for name, flag in trt.BuilderFlag.__members__.items() if kept[-1].get_flag(flag)]
    note = _inspect(job, trt, plan) if job.backend == "tensorrt" else ""
    return WorkerAnswer(
        version=str(trt.__version__),
        flags=sorted(flags),
        sm=job.sm or _present_sm(),
        seconds=seconds,
        note=note,
        timing_cache=_keep_timings(job, kept[-1], known),
    )


def refit(job: RefitJob) -> WorkerAnswer:
    """Load a plan, give it the weights of an ONNX file and write it anew; TensorRT only.

    Raises:
        OSError: The new plan cannot be written.
        RuntimeError: TensorRT refused; its log says why.
    """
    trt = _library("tensorrt")
    logger = trt.Logger(trt.Logger.VERBOSE)
    # Not polygraphy's EngineFromBytes, which lets the plan run code of its own on the host.
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(job.plan.read_bytes())
    if engine is None:
        raise RuntimeError("the plan could not be loaded")
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(job.onnx)):
        reasons = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        raise RuntimeError("; ".join(reasons) or "the ONNX file has no weights that fit the engine")
    missing = list(refitter.get_missing_weights())
    if missing:
        raise RuntimeError(f"{len(missing)} weights of the engine got no new values, first {missing[0]}")
    if not refitter.refit_cuda_engine():
        raise RuntimeError("TensorRT refused the weights")
    config = engine.create_serialization_config()
    again = getattr(trt.SerializationFlag, "INCLUDE_REFIT", None)
    if again is not None:
        config.set_flag(again)
    plan = engine.serialize_with_config(config)
    if plan is None:
        raise RuntimeError("the refitted engine could not be serialised")
    write_atomic(job.output, bytes(plan))
    return WorkerAnswer(version=str(trt.__version__), sm=_present_sm())


def explain(log: str, fallback: str) -> str:
    """Find the errors in a builder's log: every node that the parser refused, else the first error lines.

    Args:
        log: The whole log.
        fallback: What to say when the log holds no error.
    """
    refused = dict.fromkeys(
        f"node {index} {name or '(no name)'} ({operator}): {reason.strip()}"
        for index, name, operator, reason in _PARSER_ERROR.findall(log)
    )
    if refused:
        return "the ONNX parser refused " + "; ".join(refused)
    lines = dict.fromkeys(line.strip() for line in _ERROR_LINE.findall(log) if not _HARMLESS.search(line))
    return "; ".join([*lines][:3]) or fallback


def _answered(work: Callable[[], WorkerAnswer]) -> WorkerAnswer:
    try:
        return work()
    except OSError as error:
        return WorkerAnswer(error=str(error), errno=error.errno, filename=str(error.filename or ""))
    except BaseException as error:  # noqa: BLE001 -- polygraphy's fatal errors are no Exceptions everywhere; all are told
        return WorkerAnswer(error=f"{type(error).__name__}: {error}")


def _logged(log: Path, work: Callable[[], WorkerAnswer]) -> WorkerAnswer:
    """Do the work with everything that is printed going to the log, and take the error from there."""
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    answer = _answered(work)
    if answer.error is None or answer.errno is not None:
        return answer
    sys.stdout.flush()
    text = log.read_text(encoding="utf-8", errors="replace")
    return answer.model_copy(update={"error": explain(text, answer.error)})


def _backend(text: str) -> Backend:
    if text not in ("tensorrt", "tensorrt-rtx"):
        raise ValueError(text)
    return "tensorrt" if text == "tensorrt" else "tensorrt-rtx"


def _library(backend: Backend) -> Any:
    """Import the backend; also points polygraphy, which is not imported yet, at it."""
    os.environ[_RTX_VARIABLE] = "1" if backend == "tensorrt-rtx" else "0"
    if backend == "tensorrt-rtx":
        import tensorrt_rtx

        return tensorrt_rtx
    import tensorrt

    return tensorrt


def _network(job: EngineJob, loader: Any) -> Any:
    # TensorRT 11 and RTX know only strongly typed networks; 10 has to be told.
    return loader(str(job.onnx), strongly_typed=True) if job.backend == "tensorrt" else loader(str(job.onnx))


class _Bytes(io.BytesIO):
    """Bytes that polygraphy takes for an open file."""

    mode = "rb"


def _known_timings(job: EngineJob) -> bytes | None:
    """Content of the timing cache, for the builder to start from; None where there is none to read."""
    if job.backend == "tensorrt-rtx" or job.timing_cache is None or not job.timing_cache.is_file():
        return None
    return job.timing_cache.read_bytes()


def _keep_timings(job: EngineJob, config: Any, known: bytes | None) -> str:
    """Write the builder's timings, old and new, back to the cache; tells in words what was done.

    Polygraphy would do it in place, and leave a lock file behind: a full disk must not cost the user the old timings.
    """
    if job.backend == "tensorrt-rtx":
        return "not used: TensorRT-RTX chooses no kernels when it builds"
    if job.timing_cache is None:
        return "none"
    cache = config.get_timing_cache()
    if cache is None:
        return f"{job.timing_cache.name} not used: TensorRT refused it as another version's or another GPU's"
    with cache.serialize() as buffer:
        write_atomic(job.timing_cache, bytes(buffer))
    return f"{job.timing_cache.name} {'started' if known is None else 'read and extended'}"


def _config(job: EngineJob, trt: Any, monitor: Any, timings: bytes | None) -> Callable[[Any, Any], Any]:
    """The builder's configuration.

    STRICT_NANS is never set, since it forbids sparse kernels; nor is hardware compatibility, which takes away tactics.
    """
    from polygraphy.backend.trt import Profile

    profile = Profile()
    for name, (smallest, optimal, largest) in job.profile.items():
        profile.add(name, smallest, optimal, largest)
    common: dict[str, Any] = {
        "profiles": [profile],
        "sparse_weights": job.arm == "sparse",
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
    create = CreateConfig(tf32=True, load_timing_cache=None if timings is None else _Bytes(timings), **common)
    return create


def _inspect(job: EngineJob, trt: Any, plan: bytes) -> str:
    """Write the engine inspector's layers; the plan is this process's own, made a moment ago."""
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return "the engine was built but could not be loaded for inspection"
    layers = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    write_atomic(job.layers, str(layers))
    return ""


def _present_sm() -> str:
    import torch

    if not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"


def _die_with_parent() -> None:
    """End when the parent's end of stdin closes, so that a killed command leaves no build behind."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
