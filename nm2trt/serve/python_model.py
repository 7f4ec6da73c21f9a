"""Triton Python-backend model that runs model.onnx in ONNX Runtime on the CPU.

`nm2trt package --server triton-cpu` copies this file, as it stands, into every version of a model; it needs numpy and
onnxruntime in the server's Python and nothing of nm2trt. As a python-based backend it also serves models whose
configuration names another backend: same protocol and batching, not that backend's engine or speed.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance. Triton calls the three methods; their names and arguments are its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the version's graph."""
        config = json.loads(args["model_config"])
        self._batches = config["max_batch_size"] > 0
        folder = Path(args["model_repository"]) / args["model_version"]
        # On a server without nm2trt, whose nm2trt.ort opens every other session.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # The client gets its error; in the server's log it would only hide others.
        options.log_severity_level = 4
        graph = folder / "model.onnx"
        if _may_crash(graph):
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._inputs = [port.name for port in self._session.get_inputs()]
        self._outputs = [port.name for port in self._session.get_outputs()]
        sizes = [_first_size(port) for port in self._session.get_inputs()]
        self._dealt_out = all(_is_batch(_first_size(port), sizes) for port in self._session.get_outputs())

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, in their order; an error goes to the requests that cause it and to no other."""
        if not self._batches:
            return [self._answer_one(request) for request in requests]
        return self._answer_joined(requests)

    def _answer_joined(self, requests: list[Any]) -> list[Any]:
        """Run requests as one batch; where that fails, each half of them by itself, down to the one at fault."""
        if len(requests) == 1 or not self._dealt_out:
            return [self._answer_one(request) for request in requests]
        try:
            feeds = [self._feed(request) for request in requests]
            sizes = [len(feed[self._inputs[0]]) for feed in feeds]
            joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in self._inputs}
            results = self._session.run(self._outputs, joined)
        except Exception:  # noqa: BLE001 -- whatever it is, its request will meet it again
            half = len(requests) // 2
            return self._answer_joined(requests[:half]) + self._answer_joined(requests[half:])
        if any(np.ndim(result) == 0 or len(result) != sum(sizes) for result in results):
            # Unnamed, and no batch after all.
            return [self._answer_one(request) for request in requests]
        ends = np.cumsum(sizes)
        return [
            self._response([result[end - size : end] for result in results])
            for size, end in zip(sizes, ends, strict=True)
        ]

    def finalize(self) -> None:
        """Close the session."""
        self._session = None

    def _answer_one(self, request: Any) -> Any:
        try:
            return self._response(self._session.run(self._outputs, self._feed(request)))
        except Exception as error:  # noqa: BLE001 -- as in execute
            return _failure(error)

    def _feed(self, request: Any) -> dict[str, Any]:
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}

    def _response(self, values: list[Any]) -> Any:
        tensors = [
            # A view into the joined batch would be copied wrongly: the backend reads a contiguous buffer.
            pb_utils.Tensor(name, np.ascontiguousarray(value))
            for name, value in zip(self._outputs, values, strict=True)
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _may_crash(graph: Path) -> bool:
    """Whether higher optimizations may crash the server (microsoft/onnxruntime#28392: a Transpose before a MatMul)."""
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return view.find(b"Transpose") >= 0 and view.find(b"MatMul") >= 0


def _first_size(port: Any) -> Any:
    """A number, a name, None for a size without one; 1 for a scalar."""
    return port.shape[0] if port.shape else 1


def _is_batch(size: Any, input_sizes: list[Any]) -> bool:
    """Whether an output's first size is the batch, so that rows can be dealt out to requests; a name must say so.

    What NMS selects also has a free first size, which may be as large as the batch by chance.
    """
    return size is None or (not isinstance(size, int) and (size in input_sizes or None in input_sizes))


def _failure(error: Exception) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error)))
