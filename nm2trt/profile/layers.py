"""Layer by layer, in a run apart: both variants interleaved call by call, and their fused layers matched."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from nm2trt.artifacts import LayerEvidence
from nm2trt.artifacts.ratio import RatioRecord
from nm2trt.artifacts.report import VariantName
from nm2trt.artifacts.report_layers import LayersRecord, LayerTimeRecord
from nm2trt.errors import ConfigError, InputError
from nm2trt.evidence.layer_work import Work
from nm2trt.evidence.matching import OnnxNodes, match_name, onnx_nodes
from nm2trt.profile import statistics
from nm2trt.profile.layer_summary import summarized
from nm2trt.profile.reasons import Setting, why_not_faster
from nm2trt.profile.runners.runner import LayerTimes, Runner
from nm2trt.reasons import Reason, words_of

if TYPE_CHECKING:
    from nm2trt.estimate.geometry import LayerGeometry
    from nm2trt.profile.source import Source

LayerTable = Sequence[LayerTimes]

_BUDGET_S = 3.0
_FEWEST, _MOST = 8, 60
_INT8_SCALE, _HALF_SCALE = 5 / 8, 9 / 16
"""Size of compressed 2:4 weights against dense ones: two of four values, and two bits of index for each."""


def layer_tables(
    runners: Mapping[VariantName, Runner], *, seed: int, progress: Callable[[float], None] = lambda _share: None
) -> dict[VariantName, LayerTable]:
    """Time every layer of prepared runners; empty where a backend has no profiler for layers."""
    profilers = {}
    for name, runner in runners.items():
        profiler = runner.layer_profiler()
        if profiler is None:
            return {}
        profilers[name] = profiler
    started = time.perf_counter()
    for profiler in profilers.values():
        profiler.run_once()
        profiler.run_once()
    round_s = (time.perf_counter() - started) / 2
    calls = int(np.clip(_BUDGET_S / max(round_s, 1e-6), _FEWEST, _MOST))
    names = list(profilers)
    rng = np.random.default_rng(seed)
    for call in range(calls):
        for index in rng.permutation(len(names)):
            profilers[names[index]].run_once()
        progress((call + 1) / calls)
    return {name: profiler.finish() for name, profiler in profilers.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one or several layers of each variant have in common: the operators that they run."""

    dense: tuple[LayerTimes, ...]
    sparse: tuple[LayerTimes, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """ONNX nodes of all of them, each once."""
        return tuple(dict.fromkeys(node for layer in (*self.sparse, *self.dense) for node in layer.onnx_nodes))


def matched(dense: LayerTable, sparse: LayerTable) -> list[Row]:
    """Match the layers of two engines that may have fused differently.

    Layers that share an ONNX node belong to one row, through as many layers as it takes; layers without nodes
    (copies, the compiler's own) are matched by name.

    Returns:
        Rows in the order of the sparse variant, then what only the dense variant has.
    """
    layers = [("sparse", layer) for layer in sparse] + [("dense", layer) for layer in dense]
    parent = list(range(len(layers)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, (_, layer) in enumerate(layers):
        for key in [("node", node) for node in layer.onnx_nodes] or [("name", layer.name)]:
            parent[root(index)] = root(first.setdefault(key, index))
    rows: dict[int, list[tuple[str, LayerTimes]]] = {}
    for index, pair in enumerate(layers):
        rows.setdefault(root(index), []).append(pair)
    return [
        Row(
            dense=tuple(layer for variant, layer in members if variant == "dense"),
            sparse=tuple(layer for variant, layer in members if variant == "sparse"),
        )
        for members in rows.values()
    ]


def with_evidence(table: LayerTable, evidence: Iterable[LayerEvidence], graph: OnnxNodes | None) -> list[LayerTimes]:
    """Add ONNX nodes and kernels to layers that the profiler only named."""
    known = {one.name: one for one in evidence}
    found = []
    for layer in table:
        one = known.get(layer.name)
        nodes = layer.onnx_nodes or (one.onnx_nodes if one is not None else match_name(layer.name, graph))
        kernel = layer.kernel or (one.kernel if one is not None else None)
        type_ = layer.type or (one.type if one is not None else "")
        found.append(replace(layer, onnx_nodes=nodes, kernel=kernel, type=type_))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What is known of the network behind the layers; everything may be empty."""

    geometry: tuple[LayerGeometry, ...] = ()
    eligibility: Mapping[str, Reason | None] | None = None
    """Weight name -> why TensorRT considers no sparse kernel; None for an eligible one."""
    graph: OnnxNodes | None = None
    precision: str = ""
    work: Mapping[str, Work] = field(default_factory=dict)
    """Engine layer -> its work, where the inspector tells: for networks whose ONNX file is not at hand."""


def layers_record(
    tables: Mapping[str, LayerTable],
    evidence: Mapping[str, Iterable[LayerEvidence]],
    network: Network,
    setting: Setting,
    *,
    source: str,
    seed: int,
) -> LayersRecord:
    """Compare two variants layer by layer.

    Args:
        tables: "dense" and "sparse" -> layers with their times.
        evidence: The same keys -> what the builds show; may lack both.
        network: Geometry and eligibility.
        setting: Batch, GPU, and whether the backend has sparse kernels.
        source: Who took the times.
        seed: Of the bootstrap.
    """
    dense = with_evidence(tables["dense"], evidence.get("dense", ()), network.graph)
    sparse = with_evidence(tables["sparse"], evidence.get("sparse", ()), network.graph)
    chosen = {one.name: one for one in evidence.get("sparse", ())}
    total_ms = sum(_median(layer) for layer in sparse or dense)
    if not sparse:
        chosen = {one.name: one for one in evidence.get("dense", ())}
    rows = [
        _row(row, chosen, network, setting, total_ms, seed + at, is_pair=bool(sparse))
        for at, row in enumerate(matched(dense, sparse))
    ]
    return summarized(rows, batch=setting.batch, source=source, calls=_calls([*dense, *sparse]), seed=seed)


def _calls(layers: Sequence[LayerTimes]) -> int:
    return min((len(layer.times_ms) for layer in layers), default=0)


def _median(layer: LayerTimes) -> float:
    return float(np.median(layer.times_ms)) if layer.times_ms else 0.0


def _row(
    row: Row,
    evidence: Mapping[str, LayerEvidence],
    network: Network,
    setting: Setting,
    total_ms: float,
    seed: int,
    *,
    is_pair: bool,
) -> LayerTimeRecord:
    shapes = [one for one in network.geometry if one.name in row.nodes]
    products = [one for one in shapes if one.weight]
    own = () if is_pair else row.dense
    seen = [evidence[layer.name] for layer in row.sparse or own if layer.name in evidence]
    dense_ms, sparse_ms = (sum(map(_median, side)) if side else None for side in (row.dense, row.sparse))
    eligible, why_not, against = _eligible(products, seen, network)
    chosen = _chosen(seen, setting, weighted=bool(products) or _has_weights(seen))
    either = row.sparse or row.dense
    work = [network.work[layer.name] for layer in either if layer.name in network.work]
    weighted = True if products or work else _weighted(seen, network)
    record = LayerTimeRecord(
        name=_name(products, either),
        type=" + ".join(dict.fromkeys(layer.type for layer in either if layer.type)),
        onnx_nodes=row.nodes,
        shape=next((text for text in (*(one.shape for one in work), *(one.shape for one in either)) if text), ""),
        dense_ms=dense_ms,
        sparse_ms=sparse_ms,
        ratio=_ratio(row, dense_ms, sparse_ms, seed),
        share=_share(row, sparse_ms, dense_ms, total_ms, is_pair=is_pair),
        dense_kernel=_kernel(row.dense),
        sparse_kernel=_kernel(row.sparse),
        weighted=weighted,
        eligible=eligible,
        chosen=chosen,
        why_not=why_not,
        why_not_code=against.code if against else "",
        flops=sum(one.flops for one in shapes or work) or None,
        bytes=_bytes(shapes, network.precision, sparse=False) or sum(one.bytes or 0 for one in work) or None,
        bytes_sparse=_bytes(shapes, network.precision, sparse=True),
    )
    found = why_not_faster(record, products, setting)
    return record.model_copy(
        update={"reasons": tuple(reason for reason, _ in found), "advice": tuple(advice for _, advice in found)}
    )


def _share(row: Row, sparse_ms: float | None, dense_ms: float | None, total_ms: float, *, is_pair: bool) -> float:
    """Share of the sparse variant's time; what only the dense variant has is no part of it."""
    own_ms = sparse_ms if row.sparse else None if is_pair else dense_ms
    return (own_ms or 0.0) / total_ms if total_ms else 0.0


def _name(products: Sequence[LayerGeometry], layers: Sequence[LayerTimes]) -> str:
    names = [one.torch_name or one.weight or one.name for one in products]
    if names:
        return " + ".join(names[:3]) + (f" + {len(names) - 3} more" if len(names) > 3 else "")
    return layers[0].name


def _weighted(seen: Sequence[LayerEvidence], network: Network) -> bool | None:
    """Whether layers that run none of the network's known products have weights; None where nothing shows it."""
    if _has_weights(seen):
        return True
    if network.geometry or (seen and all(one.weighted is False for one in seen)):
        return False
    return None


def _has_weights(seen: Sequence[LayerEvidence]) -> bool:
    return any(one.has_weights for one in seen)


def _eligible(
    products: Sequence[LayerGeometry], seen: Sequence[LayerEvidence], network: Network
) -> tuple[bool | None, str, Reason | None]:
    """Whether a sparse kernel was possible, why not in words, and as data where nm2trt itself knows it."""
    checked = [
        network.eligibility[one.weight] for one in products if network.eligibility and one.weight in network.eligibility
    ]
    if checked:
        against = None if None in checked else checked[0]
        return against is None, words_of(against), against
    known = [one for one in seen if one.eligible is not None]
    if not known:
        return None, "", None
    eligible = any(one.eligible for one in known)
    return eligible, "" if eligible else known[0].why, None


def _chosen(seen: Sequence[LayerEvidence], setting: Setting, *, weighted: bool) -> bool | None:
    if setting.sparse_kernels is False:
        return False if weighted else None
    states = [one.chosen for one in seen if one.chosen is not None]
    return any(states) if states else None


def _ratio(row: Row, dense_ms: float | None, sparse_ms: float | None, seed: int) -> RatioRecord | None:
    if not dense_ms or not sparse_ms:
        return None
    counts = {len(layer.times_ms) for layer in (*row.dense, *row.sparse)}
    calls = counts.pop() if len(counts) == 1 else 1
    sums = [
        np.sum([layer.times_ms for layer in side], axis=0) if calls > 2 else None for side in (row.dense, row.sparse)
    ]
    if sums[0] is None or sums[1] is None or min(sums[0].min(), sums[1].min()) <= 0:
        value = dense_ms / sparse_ms
        return RatioRecord(value=value, low=value, high=value)
    return statistics.paired_ratio(sums[0][:, None], sums[1][:, None], seed=seed)


def _kernel(layers: Sequence[LayerTimes]) -> str | None:
    names = [layer.kernel for layer in layers if layer.kernel]
    return ", ".join(dict.fromkeys(names)) or None


def _bytes(shapes: Sequence[LayerGeometry], precision: str, *, sparse: bool) -> int | None:
    size = _plain(precision)
    if not shapes or size is None:
        return None
    total = 0.0
    for one in shapes:
        scale = (_INT8_SCALE if one.quantized else _HALF_SCALE) if sparse and one.weight else 1.0
        total += one.size_bytes(size, weight_scale=scale)
    return int(total)


def _plain(precision: str) -> str | None:
    """The type of the floating-point tensors in "fp32", "fp16+fp32", "fp16+int8"."""
    return next((kind for kind in ("fp16", "bf16", "fp32") if kind in precision), None)


def network_of(source: Source, *, batch: int, shapes: Mapping[str, Sequence[int]]) -> Network:
    """Collect what the ONNX file tells; geometry stays empty where its shapes cannot be inferred."""
    from nm2trt.estimate.network_layers import layer_geometries
    from nm2trt.onnx_tools.graph_compare import precision_of
    from nm2trt.verify import verify_path

    whole = {name: (batch, *sizes[1:]) for name, sizes in shapes.items()}
    try:
        geometry = layer_geometries(source.path, batch, shapes=whole)
    except (InputError, ConfigError):
        geometry = ()
    try:
        eligibility = {one.name: one.tensorrt_reason for one in verify_path(source.path).layers}
    except InputError:
        eligibility = {}
    return Network(
        geometry=geometry,
        eligibility=eligibility,
        graph=onnx_nodes(source.model),
        precision=precision_of(source.model),
    )
