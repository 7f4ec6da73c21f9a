"""The version that the double reports, and the faults that a test ordered."""

from __future__ import annotations

import os

import tensorrt_bindings

VERSION = f"{tensorrt_bindings.__version__}+double"
FAULTS = {
    "no_driver": "Builder and Runtime cannot be made, as without a driver or with one that is too old",
    "no_context": "create_execution_context returns None, as when memory runs out",
    "no_capture": "no stream can be captured",
    "no_capture_sparse": "the engines built with SPARSE_WEIGHTS cannot be captured",
    "cache_version": "create_timing_cache refuses any content, as of another version",
    "cache_device": "set_timing_cache refuses a cache with content, as of another GPU",
    "bad_inspector": "the inspector's JSON cannot be parsed",
    "no_inspector": "create_engine_inspector returns None",
    "no_deserialize": "no plan can be deserialized",
    "refit_refused": "refit_cuda_engine refuses the weights",
    "no_plan": "build_serialized_network returns None",
    "no_serialize": "serialize_with_config returns None",
    "crash_in_build": "the process is killed while it builds",
    "crash_after_answer": "the process dies of SIGSEGV when it ends, as when CUDA is torn down",
}
_asked = set(filter(None, os.environ.get("NM2TRT_TENSORRT_DOUBLE_FAULTS", "").split(",")))
if _asked - set(FAULTS):
    raise ImportError(f"the double knows no fault {sorted(_asked - set(FAULTS))}")


def faulty(name: str) -> bool:
    """Whether a test ordered this fault."""
    if name not in FAULTS:
        raise KeyError(name)
    return name in _asked
