"""What ONNX Runtime answers on the build's own graph: the right answers of a check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nm2trt.errors import InputError
from nm2trt.ort import SessionError, find_batch_axis, open_session, run_session
from nm2trt.serve.samples import Feed, Samples


class Reference:
    """A graph in ONNX Runtime on the CPU.

    Args:
        onnx: The graph.

    Raises:
        InputError: ONNX Runtime cannot load it.
    """

    def __init__(self, onnx: Path) -> None:
        self._onnx = onnx
        try:
            self._session: Any = open_session(str(onnx), threads=1)
        except SessionError as error:
            raise self._unusable(error) from error
        self._outputs = [port.name for port in self._session.get_outputs()]

    def run(self, feed: Feed) -> Feed:
        """Outputs by name.

        Raises:
            InputError: The graph does not take these inputs.
        """
        try:
            return run_session(self._session, feed)
        except SessionError as error:
            raise self._unusable(error) from error

    def outputs_without_batch(self, samples: Samples) -> list[str]:
        """Outputs whose first axis is not the batch: they cannot be dealt out to the requests of a joined batch."""
        shapes: dict[str, dict[int, tuple[int, ...]]] = {name: {} for name in self._outputs}
        for size in (2, 3):
            for name, value in self.run(samples.feed(0, size)).items():
                shapes[name][size] = value.shape
        return [name for name, found in shapes.items() if find_batch_axis(found) != 0]

    def _unusable(self, error: SessionError) -> InputError:
        return InputError(
            f"ONNX Runtime cannot run it, so there is nothing to compare with: {error.reason}",
            where=self._onnx,
            hint="if the inputs are at fault, give --samples F.npz or --shape",
        )


def read_limits(onnx: Path) -> Mapping[str, int]:
    """Bounds of a graph's integer inputs; its weights are not read."""
    import onnx_ir as ir

    from nm2trt.ort.index_limits import index_limits

    return index_limits(ir.load(onnx))
