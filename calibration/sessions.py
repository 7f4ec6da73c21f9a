"""ONNX Runtime as calibration uses it: on the CPU, with activations as outputs, Q/DQ computed as written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from nm2trt.calibration.graph import Graph
from nm2trt.ort import open_session, run_session

Array = NDArray[Any]
Feed = dict[str, Array]


class Runner:
    """One model, ready to run.

    Args:
        model: Serialized, a proto, or a file, whose bytes are then read as they are.
        where: For error lines.

    Raises:
        InputError: ONNX Runtime refuses the model.
    """

    def __init__(self, model: bytes | Path | onnx.ModelProto, where: object) -> None:
        content = (
            str(model) if isinstance(model, Path) else model if isinstance(model, bytes) else model.SerializeToString()
        )
        # The arena takes a quarter more memory where every activation is an output. The CPU's INT8 kernels may saturate
        # where TensorRT's do not, so Q/DQ stay what they say: rounding in float.
        self._session = open_session(content, where=where, arena=False, entries={"session.disable_quant_qdq": "1"})
        self.outputs = [output.name for output in self._session.get_outputs()]
        self._where = where

    def run(self, feed: Feed) -> list[Array]:
        """Run one batch; outputs in the graph's order.

        Raises:
            InputError: ONNX Runtime refuses the batch.
        """
        return list(self.named(feed).values())

    def named(self, feed: Feed) -> dict[str, Any]:
        """Run one batch; outputs by name, errors as `run`."""
        return run_session(self._session, feed, where=self._where)


def with_outputs(graph: Graph, tensors: Sequence[str]) -> onnx.ModelProto:
    """Return the float model with these tensors as its only outputs."""
    import onnx_ir as ir

    model = graph.fresh()
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[tensor] for tensor in tensors)
    proto: onnx.ModelProto = ir.to_proto(model)
    return proto
