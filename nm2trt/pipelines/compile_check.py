"""The compile check of `nm2trt calibrate`: TensorRT builds the result, and its dump of layers tells what is INT8."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nm2trt.artifacts.calibration import CompileRecord
    from nm2trt.calibration.graph import Graph
    from nm2trt.calibration.placement import Placement
    from nm2trt.engine import Chosen
    from nm2trt.evidence.inspector import InspectedLayer

_BATCHES = (1, 8, 64)
_QUANTIZE = "QuantizeLinear"


def compile_result(
    result: Path,
    graph: Graph,
    placement: Placement,
    shapes: dict[str, tuple[int, ...]],
    *,
    chosen: Chosen,
    sm: str | None,
) -> CompileRecord | None:
    """Build the result once and count INT8 layers and fused residual additions in the builder's dump.

    Args:
        result: The quantized ONNX file.
        graph: The float graph.
        placement: What was quantized.
        shapes: Input name -> shape of a sample with its batch, for free sizes; may be empty.
        chosen: The builder.
        sm: Compute capability, as the builder settled it.

    Returns:
        None where there is no builder, or a free size that nothing tells.
    """
    from nm2trt.artifacts.calibration import CompileRecord
    from nm2trt.engine import EngineJob
    from nm2trt.evidence.files import read_builder_log

    profile = _profile(graph, shapes)
    if chosen.builder is None or profile is None:
        return None
    with tempfile.TemporaryDirectory(prefix="nm2trt-compile-") as temporary:
        job = EngineJob(
            backend=chosen.builder.name, onnx=result, folder=Path(temporary), variant="sparse", sm=sm, profile=profile
        )
        record = chosen.builder.build(job)
        dumped = read_builder_log(job.log).layers if job.log.is_file() else ()
    layers, int8 = count_int8(dumped, placement)
    adds, fused = count_residuals(dumped, graph, placement)
    return CompileRecord(
        builder=record.builder,
        version=record.builder_version,
        sm=record.sm,
        error=record.error,
        seconds=record.seconds,
        int8_layers=int8,
        layers=layers,
        residual_adds=adds,
        residual_adds_fused=fused,
        note=_note(record.builder, dumped),
    )


def count_int8(dumped: tuple[InspectedLayer, ...], placement: Placement) -> tuple[int, int]:
    """Return how many quantized layers the dump names, and how many of them read INT8 data and INT8 weights."""
    kernels = [layer for layer in dumped if layer.type != "kgen" and layer.constants]
    found = int8 = 0
    for layer in placement.layers:
        own = [kernel for kernel in kernels if layer.name in kernel.onnx_nodes]
        found += bool(own)
        int8 += any(_is_int8(kernel.inputs) and _is_int8(kernel.constants) for kernel in own)
    return found, int8


def count_residuals(dumped: tuple[InspectedLayer, ...], graph: Graph, placement: Placement) -> tuple[int, int]:
    """Return how many residual additions have a quantized skip, and how many of them are part of a larger kernel.

    Part of a larger kernel: the addition shares it with a convolution or with the quantization of its result, and the
    kernel writes INT8.

    Args:
        dumped: The engine's layers, as its inspector tells of them.
        graph: The network that was compiled.
        placement: Where its Q/DQ nodes are, and by which rule.
    """
    names = [
        graph.name_of(node)
        for tensor, edges in placement.edges.items()
        if "residual-skip" in placement.rules[tensor]
        for node, _ in edges
        if node >= 0 and graph.nodes[node].op_type == "Add"
    ]
    fused = sum(
        any(
            name in kernel.onnx_nodes and _is_int8(kernel.outputs) and any(_QUANTIZE in n for n in kernel.onnx_nodes)
            for kernel in dumped
        )
        for name in names
    )
    return len(names), fused


def _is_int8(tensors: tuple[Any, ...]) -> bool:
    return any("int8" in f"{tensor.dtype} {tensor.format}".lower() for tensor in tensors)


def _profile(graph: Graph, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any] | None:
    profile = {}
    for port in graph.ports:
        if None not in port.shape:
            continue
        known = shapes.get(port.name)
        free = [axis for axis, size in enumerate(port.shape) if size is None and axis != port.batch_axis]
        if known is None and free:
            return None
        sizes = [size if size is not None else (known or port.shape)[axis] for axis, size in enumerate(port.shape)]
        profile[port.name] = tuple(
            tuple(batch if axis == port.batch_axis else size for axis, size in enumerate(sizes)) for batch in _BATCHES
        )
    return profile


def _note(builder: str, dumped: tuple[InspectedLayer, ...]) -> str:
    if not dumped:
        return "the log holds no dump of layers"
    if builder == "tensorrt-rtx":
        return (
            "an ahead-of-time build: it shows types and fusions; kernels are chosen on the GPU, so nothing here tells "
            "whether a sparse kernel runs"
        )
    return "types and fusions from the build log; `nm2trt export` and `nm2trt profile` tell which kernels run"
