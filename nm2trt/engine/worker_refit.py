"""New weights for a plan, in the worker process: TensorRT only."""

from __future__ import annotations

from nm2trt.artifacts import write_atomic
from nm2trt.engine.job import RefitJob, WorkerAnswer
from nm2trt.errors import InputError, MachineError
from nm2trt.tensorrt_api import LogKeeper, keep_log, load_engine, load_tensorrt, make_runtime, present_sm, require
from nm2trt.tensorrt_api.types import ICudaEngine, Refitter, Tensorrt


def refit(job: RefitJob) -> WorkerAnswer:
    """Load a plan, give it the weights of an ONNX file and write it anew.

    Raises:
        OSError: The new plan cannot be written.
        InputError: The plan or the ONNX file was refused.
        MachineError: TensorRT cannot run, or refused the weights.
    """
    trt = load_tensorrt("tensorrt")
    log = keep_log(trt, "VERBOSE")
    # Not polygraphy's EngineFromBytes, which lets the plan run code of its own on the host.
    runtime = make_runtime(trt, log)
    engine = load_engine(runtime, job.plan.read_bytes(), log, where=job.plan)
    _replace_weights(trt, engine, job, log)
    write_atomic(job.output, _serialize(trt, engine, log))
    return WorkerAnswer(version=str(trt.__version__), sm=present_sm() or "")


def _replace_weights(trt: Tensorrt, engine: ICudaEngine, job: RefitJob, log: LogKeeper) -> None:
    refitter = _make_refitter(trt, engine, log)
    parser = trt.OnnxParserRefitter(refitter, log.logger)
    if not parser.refit_from_file(str(job.onnx)):
        reasons = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        raise InputError("; ".join(reasons) or log.last_error or "the ONNX file has no weights that fit the engine")
    missing = list(refitter.get_missing_weights())
    if missing:
        raise InputError(f"{len(missing)} weights of the engine got no new values, first {missing[0]}")
    if not refitter.refit_cuda_engine():
        raise MachineError(f"TensorRT refused the weights{log.because()}")


def _make_refitter(trt: Tensorrt, engine: ICudaEngine, log: LogKeeper) -> Refitter:
    try:
        return trt.Refitter(engine, log.logger)
    except TypeError as error:
        # pybind11's word for a null pointer.
        raise InputError(f"the engine cannot be refitted{log.because()}") from error


def _serialize(trt: Tensorrt, engine: ICudaEngine, log: LogKeeper) -> bytes:
    config = require(engine.create_serialization_config(), "TensorRT made no serialization configuration", log)
    include_refit = getattr(getattr(trt, "SerializationFlag", None), "INCLUDE_REFIT", None)
    if include_refit is not None:
        config.set_flag(include_refit)
    return bytes(require(engine.serialize_with_config(config), "the refitted engine could not be serialized", log))
