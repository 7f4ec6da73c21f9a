"""ONNX Runtime sessions on the CPU, with errors of one line."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.onnx_tools.convert_precision import convert
from nm2trt.onnx_tools.writing import EXTERNAL_ABOVE_BYTES, weights_size_bytes

Array = NDArray[Any]

_FAILED_NODE = re.compile(r"while running (\S+) node\. Name:'([^']*)'\s*Status Message:\s*(.*)", re.DOTALL)
_LOCATION = re.compile(r"^\S+:\d+ .*?\) ")
_QUIET = 4


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
            found = self._session.run(None, given)
        except Exception as error:  # noqa: BLE001 -- onnxruntime's exception classes have no public base
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in given.items())
            raise InputError(
                f"the graph refuses {shapes}: {one_line(error)}",
                where=self._where,
                hint="choose a --batch that it takes, say what its inputs hold with --fixed or --samples, or export it "
                "with a free batch",
            ) from None
        return dict(zip(self.outputs, found, strict=True))


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
        file = Path(folder) / "model.onnx"
        ir.save(model, file, external_data="model.onnx.data")
        return _opened(str(file), path.name, optimized=optimized)


def one_line(error: Exception) -> str:
    """What ONNX Runtime says, without its own file names and with the node where one failed."""
    text = " ".join(str(error).split())
    found = _FAILED_NODE.search(text)
    if found:
        return f"node {found[2]} ({found[1]}): {_LOCATION.sub('', found[3])[:300]}"
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)[:400] or type(error).__name__


def _opened(content: str | bytes, where: str, *, optimized: bool) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    # As many threads as torch has, and none that waits by turning: such a wait is processor time of the user's others.
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    levels = onnxruntime.GraphOptimizationLevel
    # The extended level of 1.31 crashes on an exported cross-attention, and its fusions are no part of the file.
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC if optimized else levels.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"ONNX Runtime refuses the model: {one_line(error)}", where=where) from error
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
