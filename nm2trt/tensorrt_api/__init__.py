"""The one place that knows TensorRT's Python API: loading it, its types, its logger, and why it cannot run here."""

from nm2trt.tensorrt_api.availability import (
    Flavor,
    distribution_version,
    explain_missing,
    explain_missing_gpu,
    explain_missing_package,
    module_name,
    present_gpu,
    present_sm,
)
from nm2trt.tensorrt_api.loading import load_engine, load_tensorrt, make_runtime
from nm2trt.tensorrt_api.logger import LogKeeper, keep_log, require

__all__ = [
    "Flavor",
    "LogKeeper",
    "distribution_version",
    "explain_missing",
    "explain_missing_gpu",
    "explain_missing_package",
    "keep_log",
    "load_engine",
    "load_tensorrt",
    "make_runtime",
    "module_name",
    "present_gpu",
    "present_sm",
    "require",
]
