"""A test double of TensorRT: the real bindings' enums, loggers, Dims and callback bases, with the rest simulated.

Only the project's tests import it: it refuses to load unless NM2TRT_TENSORRT_DOUBLE names the folder that
tests/tensorrt_double/prepare.py filled, and its version ends in "+double", so that nothing that it says can be taken
for an observation of TensorRT.

    NM2TRT_TENSORRT_DOUBLE            folder of prepare.py
    NM2TRT_TENSORRT_DOUBLE_VERSION    "10.16" or "11.4"
    NM2TRT_TENSORRT_DOUBLE_FAULTS     names of `FAULTS`, with commas
"""

from __future__ import annotations

import os
from pathlib import Path

from tensorrt._loading import import_bindings

_HOME = os.environ.get("NM2TRT_TENSORRT_DOUBLE")
if not _HOME:
    raise ImportError("this is the test double of TensorRT; only nm2trt's own tests may import it")
_bindings = import_bindings(Path(_HOME), os.environ.get("NM2TRT_TENSORRT_DOUBLE_VERSION", "11.4"))

from tensorrt_bindings import *  # noqa: E402, F403

from tensorrt._build import Builder, OnnxParser  # noqa: E402, F401
from tensorrt._refit import OnnxParserRefitter, Refitter  # noqa: E402, F401
from tensorrt._run import Runtime  # noqa: E402, F401
from tensorrt._version import VERSION  # noqa: E402

__version__ = VERSION


def init_libnvinfer_plugins(logger: object, namespace: str) -> bool:
    """There are no plugins."""
    return True
