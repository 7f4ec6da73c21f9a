"""Imports TensorRT's real bindings over the stub libraries."""

from __future__ import annotations

import ctypes
import importlib
import sys
from pathlib import Path
from types import ModuleType

LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")


def import_bindings(home: Path, version: str) -> ModuleType:
    """Import `tensorrt_bindings` of one version.

    Args:
        home: Folder that prepare.py filled.
        version: "10.16" or "11.4".

    Raises:
        OSError: The stubs are not there or do not load.
        ImportError: The bindings do not fit this Python.
    """
    major = version.partition(".")[0]
    for library in LIBRARIES:
        ctypes.CDLL(str(home / f"stubs-{major}" / f"{library}.so.{major}"), mode=ctypes.RTLD_GLOBAL)
    sys.path.append(str(home / f"bindings-{version}"))
    return importlib.import_module("tensorrt_bindings")
