"""Times of single layers on ONNX Runtime's CPU provider, from its own profiler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from nm2trt.profile.runners.runner import LayerTimes

_SUFFIX = "_kernel_time"
_LAYOUT = "_nchwc"
"""ONNX Runtime appends it to operators that it moved into its blocked layout."""
_CAST = "InsertedPrecisionFreeCast_"
"""It names casts so that it puts around operators without FP16 kernels, and what it then fuses with them."""


class OnnxRuntimeLayers:
    """A session with the profiler on, and the reader of what the profiler writes.

    Args:
        session: Opened with `enable_profiling`.
        binding: Its inputs and outputs.
        model: What it was opened from: names the operators.
        folder: Where the profiler writes; removed at the end.
    """

    def __init__(
        self, session: Any, binding: Any, model: onnx.ModelProto, folder: tempfile.TemporaryDirectory[str]
    ) -> None:
        self._session, self._binding, self._model, self._folder = session, binding, model, folder
        self._calls = 0

    def run_once(self) -> None:
        """Execute once."""
        self._session.run_with_iobinding(self._binding)
        self._calls += 1

    def finish(self) -> list[LayerTimes]:
        """Stop, read the profiler's file and remove it."""
        try:
            events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        finally:
            self._session = self._binding = None
            self._folder.cleanup()
        return layer_times(events, self._model, calls=self._calls)


def layer_times(events: Sequence[Mapping[str, Any]], model: onnx.ModelProto, *, calls: int) -> list[LayerTimes]:
    """Read the events of ONNX Runtime's profiler.

    Args:
        events: Chrome trace events; those of category "Node" whose name ends in "_kernel_time" count, `dur` in us.
        model: The network that ran, before ONNX Runtime fused it.
        calls: How often it ran; the first call is left out.

    Returns:
        Layers in the order they ran. One that runs several times in a call (inside a loop) is summed over the call.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            key = str(event.get("args", {}).get("node_index", "")), name.removesuffix(_SUFFIX)
            found.setdefault(key, []).append(event)
    origins = _Origins(model)
    layers = []
    for (_, name), all_events in found.items():
        per_call = len(all_events) // calls
        if per_call * calls != len(all_events) or not per_call:
            # Ran in some calls only (a branch): its share cannot be told per call.
            continue
        durations_us = [int(event["dur"]) for event in all_events]
        sums_ms = [sum(durations_us[at : at + per_call]) / 1000 for at in range(0, len(durations_us), per_call)]
        arguments = all_events[0].get("args", {})
        layers.append(
            LayerTimes(
                name=name.removesuffix(_LAYOUT),
                type=str(arguments.get("op_name", "")),
                times_ms=tuple(sums_ms[1:] if calls > 1 else sums_ms),
                onnx_nodes=origins.of(name.removesuffix(_LAYOUT), str(arguments.get("op_name", ""))),
                kernel=None,
                shape=_shapes(arguments),
            )
        )
    return layers


class _Origins:
    """Which operators of the file stand behind one of ONNX Runtime's.

    It names what it fused after an operator or after the last tensor that the fused operators make. From there the
    chain is followed back to the operator with weights.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._nodes = {node.name: node for node in model.graph.node if node.name}
        self._makers = {output: node for node in model.graph.node for output in node.output}
        self._constants = {tensor.name for tensor in model.graph.initializer}

    def of(self, name: str, op_type: str) -> tuple[str, ...]:
        tensor = name if op_type == "Cast" else name.removeprefix(_CAST)
        node = self._nodes.get(name) or self._makers.get(tensor)
        if node is None:
            return ()
        chain = [node]
        wanted = op_type.removeprefix("Fused").removeprefix("QLinear")
        while node.op_type != wanted and len(chain) < _LONGEST_CHAIN:
            before = [self._makers[one] for one in node.input if one in self._makers]
            match = next((one for one in before if one.op_type == wanted), None)
            following = match or (before[0] if before else None)
            if following is None:
                break
            node = following
            chain.append(node)
        if node.op_type != wanted:
            # A fused operator that carries one operator's name stands for that one at least.
            chain = chain[:1] if name in self._nodes else []
        return tuple(one.name or one.output[0] for one in reversed(chain))


_LONGEST_CHAIN = 4


def _shapes(arguments: Mapping[str, Any]) -> str:
    """Input, weight and output shapes as the profiler saw them: `2x64x16x16 * 64x64x3x3 -> 2x64x16x16`."""
    sides = []
    for key in ("input_type_shape", "output_type_shape"):
        shapes: list[list[int]] = [
            next(iter(entry.values()), []) for entry in arguments.get(key, ()) if isinstance(entry, dict)
        ]
        sides.append(" * ".join("x".join(map(str, shape)) for shape in shapes[:2] if shape))
    return " -> ".join(side for side in sides if side)
