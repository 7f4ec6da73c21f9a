"""ONNX Runtime sessions on the CPU, with errors of one line."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from nm2trt.artifacts.names import ONNX_FILE
from nm2trt.errors import InputError
from nm2trt.onnx_tools.convert_precision import convert
from nm2trt.onnx_tools.writing import EXTERNAL_ABOVE_BYTES, weights_size_bytes
from nm2trt.ort.open_session import SessionError, open_session, run_session

Array = NDArray[Any]


class Session:
    """One graph, ready to run."""

    def __init__(self, session: Any, where: str) -> None:
        self._session = session
        self._where = where
        self.outputs = [port.name for port in session.get_outputs()]
        self._types = {port.name: port.type for port in session.get_inputs()}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; float32 values are rounded where the graph takes float16.

        Raises:
            InputError: The graph refuses these shapes, as one with a fixed batch inside does.
        """
        given = {
            name: feeds[name].astype(np.float16) if kind == "tensor(float16)" else feeds[name]
            for name, kind in self._types.items()
        }
        try:
            return run_session(self._session, given)
        except SessionError as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in given.items())
            raise InputError(
                f"the graph refuses {shapes}: {error.reason}",
                where=self._where,
                hint="choose a --batch that it takes, say what its inputs hold with --fixed or --samples, or export it "
                "with a free batch",
            ) from None


def session_of(path: Path, *, optimized: bool = True) -> Session:
    """Open a file; bfloat16, for which ONNX Runtime's CPU has no kernels, is computed in float32.

    Raises:
        InputError: ONNX Runtime refuses the model.
    """
    if _has_bfloat16(path):
        model = ir.load(path)
        convert(model, "fp32", source="bf16", io_dtype="same")
        return session_of_model(model, path, optimized=optimized)
    return _opened(str(path), path.name, optimized=optimized)


def session_of_model(model: ir.Model, path: Path, *, optimized: bool = True) -> Session:
    """Open an edited model; one beyond protobuf's limit takes the way through a temporary folder."""
    if weights_size_bytes(model) <= EXTERNAL_ABOVE_BYTES:
        # Weights that lie beside the file are read in, since a model of bytes has no folder.
        ir.external_data.load_to_model(model)
        return _opened(ir.to_proto(model).SerializeToString(), path.name, optimized=optimized)
    with tempfile.TemporaryDirectory(prefix="nm2trt-export-") as folder:
        file = Path(folder) / ONNX_FILE
        ir.save(model, file, external_data=f"{ONNX_FILE}.data")
        return _opened(str(file), path.name, optimized=optimized)


def _opened(content: str | bytes, where: str, *, optimized: bool) -> Session:
    # As many threads as torch has. The extended fusions are no part of the file.
    session = open_session(
        content, where=where, level="basic" if optimized else "none", threads=torch.get_num_threads()
    )
    return Session(session, where)


def _has_bfloat16(path: Path) -> bool:
    """Whether a graph computes in bfloat16; a file that is no model is left to ONNX Runtime's own words."""
    with contextlib.suppress(Exception):
        model = ir.load(path)
        narrow = ir.DataType.BFLOAT16
        values = [*model.graph.inputs, *model.graph.initializers.values()]
        values += [output for node in model.graph.all_nodes() for output in node.outputs]
        casts = [node.attributes["to"].as_int() for node in model.graph.all_nodes() if node.op_type == "Cast"]
        return int(narrow) in casts or any(value.dtype == narrow for value in values)
    return False
