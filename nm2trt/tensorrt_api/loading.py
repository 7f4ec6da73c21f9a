"""Importing TensorRT, and loading plans with its host code disallowed."""

from __future__ import annotations

import importlib
from pathlib import Path

from nm2trt.errors import InputError, MachineError
from nm2trt.library_errors import one_line
from nm2trt.tensorrt_api.availability import Flavor, module_name
from nm2trt.tensorrt_api.logger import LogKeeper, require
from nm2trt.tensorrt_api.types import ICudaEngine, Runtime, Tensorrt

_OLDEST = (10, 0)
"""TensorRT 10.0 has everything that nm2trt calls; 9 lacks `get_tensor_profile_shape` by name and more."""


def load_tensorrt(flavor: Flavor) -> Tensorrt:
    """Import the module.

    Raises:
        MachineError: It is missing, does not load, or is too old.
    """
    name = module_name(flavor)
    try:
        trt: Tensorrt = importlib.import_module(name)
        version = trt.__version__
    except Exception as error:  # a library that is missing, built for another Python, or half installed
        raise MachineError(
            f"cannot be imported: {one_line(error, whole=True)}", where=name, hint="install it again"
        ) from error
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if flavor == "tensorrt" and numbers < _OLDEST:
        raise MachineError(f"version {version} is too old", where=name, hint="install TensorRT 10.0 or newer")
    return trt


def make_runtime(trt: Tensorrt, log: LogKeeper) -> Runtime:
    """Make a runtime; the code that plans carry for the host stays disallowed.

    Raises:
        MachineError: There is no driver, or it is too old for this TensorRT.
    """
    try:
        runtime = trt.Runtime(log.logger)
    except TypeError as error:
        # pybind11's word for a null pointer; the reason is only in the log.
        raise MachineError(
            f"TensorRT {trt.__version__} cannot use the GPU{log.because()}",
            hint="check that the driver fits this TensorRT's CUDA (nvidia-smi shows the newest CUDA it supports)",
        ) from error
    runtime.engine_host_code_allowed = False
    return runtime


def load_engine(runtime: Runtime, plan: bytes, log: LogKeeper, *, where: Path) -> ICudaEngine:
    """Deserialize a plan that `nm2trt.artifacts.check_plan` vouched for.

    Raises:
        InputError: TensorRT refuses it; the line says why.
    """
    return require(
        runtime.deserialize_cuda_engine(plan),
        "TensorRT could not deserialize it",
        log,
        error=InputError,
        where=where,
        hint="build it again on this machine",
    )
