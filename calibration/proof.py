"""What became of every layer: its type, its pattern before and after, and whether it is INT8 from end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nm2trt.artifacts.calibration import LayerRecord, TensorRange
from nm2trt.calibration.graph import Graph, Layer
from nm2trt.calibration.placement import Placement, ends_in_int8, output_of
from nm2trt.calibration.ranges import LEVELS
from nm2trt.calibration.statistics import BINS, TensorStatistics
from nm2trt.pattern import NMPattern
from nm2trt.verify import CheckResult

_CONFORMS = "conforms"


def sparse_weights(result: CheckResult) -> set[str]:
    """Names of the weights that hold a pattern which sparse kernels take, without groups of channels."""
    return {
        layer.name
        for layer in result.layers
        if layer.verdict == _CONFORMS and NMPattern.parse(layer.pattern).tensorrt_legal and layer.channel_groups == 1
    }


def layer_records(
    graph: Graph, placement: Placement, before: CheckResult, after: CheckResult, why_not: Mapping[str, str]
) -> tuple[LayerRecord, ...]:
    """Describe every layer that could have been quantized.

    Args:
        graph: The float graph.
        placement: What was quantized.
        before: `nm2trt verify` on the float model.
        after: The same on the result.
        why_not: Layer name -> why it stayed in floating point.
    """
    first = {layer.name: layer for layer in before.layers}
    second = {layer.name: layer for layer in after.layers}
    chosen = {layer.node for layer in placement.layers}
    records = []
    for layer in graph.layers:
        old, new = first.get(layer.weight), second.get(layer.weight)
        int8 = layer.node in chosen
        output = ends_in_int8(graph, placement, output_of(graph, layer))
        records.append(
            LayerRecord(
                name=layer.name,
                weight=layer.weight,
                op=layer.op,
                shape=layer.shape,
                int8=int8,
                why_not="" if int8 else why_not.get(layer.name, ""),
                output_int8=output,
                end_to_end=int8 and output,
                pattern=old.pattern if old else "",
                verdict_before=old.verdict if old else "",
                verdict_after=new.verdict if new else "",
                density_before=old.density if old else None,
                density_after=new.density if new else None,
            )
        )
    return tuple(records)


def pattern_problems(records: Sequence[LayerRecord]) -> list[str]:
    """One line for each layer that held its pattern before and does not after."""
    return [
        f"{record.weight} held {record.pattern} before and is {record.verdict_after or 'missing'} after"
        for record in records
        if record.verdict_before == _CONFORMS and record.verdict_after != _CONFORMS
    ]


def tensor_ranges(
    placement: Placement, scales: Mapping[str, float], statistics: Mapping[str, TensorStatistics]
) -> tuple[TensorRange, ...]:
    """Describe the range of every quantized activation."""
    found = []
    for tensor in placement.edges:
        stats, reach = statistics.get(tensor), scales[tensor] * LEVELS
        found.append(
            TensorRange(
                tensor=tensor,
                rules=tuple(placement.rules[tensor]),
                smallest=stats.smallest if stats else None,
                largest=stats.largest if stats else None,
                reach=reach,
                scale=scales[tensor],
                clipped_share=_clipped(stats, reach) if stats else None,
            )
        )
    return tuple(found)


def chosen_layers(
    graph: Graph, exclude: tuple[str, ...], kept_float: Sequence[Layer] = ()
) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """Split the layers into those to quantize, and names with reasons of the others."""
    why_not = {layer.name: "left out by --exclude" for layer in graph.layers if layer.matches(exclude)}
    why_not |= {layer.name: "kept in floating point by --max-drop" for layer in kept_float}
    return tuple(layer for layer in graph.layers if layer.name not in why_not), why_not


def _clipped(stats: TensorStatistics, reach: float) -> float:
    if reach >= stats.magnitude or not stats.span:
        return 0.0
    first = min(int(reach / stats.span * BINS) + 1, BINS)
    return float(stats.counts[first:].sum() / max(int(stats.counts.sum()), 1))
