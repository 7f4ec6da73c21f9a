"""ONNX files on disk: one file, or external data beside it; read back and checked as they lie there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import onnx
import onnx_ir as ir

from nm2trt.artifacts import write_atomic
from nm2trt.errors import InputError
from nm2trt.library_errors import one_line

DATA_SUFFIX = ".data"
EXTERNAL_ABOVE_BYTES = 2_000_000_000
"""Weights beyond this lie beside the model: a protobuf message ends at 2 GiB."""

_SMALL_BYTES = 1024
_LONGEST_REASON = 600
"""Of onnx's checker, which writes the node out."""


def weights_size_bytes(model: ir.Model) -> int:
    """Size of all initializers."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def write_onnx(
    model: ir.Model, path: Path, *, external: bool = False, external_above_bytes: int = EXTERNAL_ABOVE_BYTES
) -> list[Path]:
    """Write a model, whole or not at all.

    Args:
        model: To write.
        path: The .onnx file.
        external: Put weights beside it, whatever their size.
        external_above_bytes: Put weights beside it when they are larger together.

    Returns:
        The files written; external data lie in `path` + ".data".

    Raises:
        OSError: The disk is full or the folder cannot be written; what was there stays.
    """
    if not external and weights_size_bytes(model) <= external_above_bytes:
        # What lies beside the source has to come along.
        ir.external_data.load_to_model(model)
        write_atomic(path, ir.to_proto(model).SerializeToString(deterministic=True))
        return [path]
    data = path.with_name(path.name + DATA_SUFFIX)
    try:
        ir.save(model, path, external_data=data.name, size_threshold_bytes=_SMALL_BYTES, max_workers=1)
        for file in (path, data):
            _sync(file)
    except OSError as error:
        path.unlink(missing_ok=True)
        data.unlink(missing_ok=True)
        if error.errno is None:
            # numpy reports a short write without saying why the system refused.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(data)) from error
        raise
    return [path, data]


def check_onnx(path: Path, *, strict: bool = True) -> None:
    """Run the ONNX checker over a file and its external data.

    Args:
        path: The .onnx file.
        strict: With strict shape and type inference; files of other tools run with less.

    Raises:
        InputError: The file breaks the ONNX standard.
    """
    try:
        onnx.checker.check_model(str(path), full_check=strict)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputError(
            f"is no valid ONNX: {one_line(error, longest=_LONGEST_REASON, whole=True)}", where=path.name
        ) from None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
