"""Pruning ONNX files with data: the samples of `nm2trt calibrate`, and the driver of nm2trt/prune."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nm2trt.artifacts.calibration import Agreement, Sensitivity
from nm2trt.errors import InputError
from nm2trt.pipelines.prune_data import (
    DataConfig,
    StepProgress,
    add_layer_errors,
    find_fewest_dense,
    find_problems,
    find_ranking_samples,
    keep_dense,
    make_record,
    open_samples,
)
from nm2trt.prune.prune_schema import NormRecord
from nm2trt.prune.run import DataPruned
from nm2trt.prune.selection import ScoredWeights

if TYPE_CHECKING:
    from nm2trt.calibration.agreement import OutputChecker
    from nm2trt.calibration.feeds import Source
    from nm2trt.prune.calibrated.onnx_graph import RunnableGraph
    from nm2trt.prune.calibrated.onnx_layers import PrunableTensor
    from nm2trt.prune.calibrated.onnx_network import PrunedNetwork
    from nm2trt.prune.selection import Decision

_BATCH_BYTES = 32 * 2**20
_LARGEST_BATCH = 64


def prune_onnx_with_data(
    path: Path, decisions: Sequence[Decision], *, config: DataConfig, source: Path, progress: StepProgress
) -> DataPruned:
    """Prune the chosen weights of an ONNX file with samples; nothing is written.

    Args:
        path: The file, dense.
        decisions: What was chosen.
        config: Samples and method.
        source: The user's file, for error lines.
        progress: Told of layers and samples.

    Raises:
        ConfigError: The data cannot be named so.
        InputError: The file or the samples cannot be used.
    """
    started = time.perf_counter()
    graph, tensors, settled = _open_network(path, decisions, source, progress)
    work = _Work.open(path, graph, tensors, config, progress)
    result = work.search()
    return _found(work, result, settled, time.perf_counter() - started)


def score_onnx_weights(
    path: Path, decisions: Sequence[Decision], *, config: DataConfig, source: Path, progress: StepProgress
) -> ScoredWeights:
    """Score the chosen weights of an ONNX file as wanda or obs does; arguments and errors as `prune_onnx_with_data`."""
    from nm2trt.prune.calibrated.onnx_network import PruneMethod, score_network

    assert config.method != "magnitude"
    graph, tensors, _ = _open_network(path, decisions, source, progress)
    samples, size = _open_samples(graph, tensors, config)
    how = PruneMethod(method=config.method, damping=config.damping)
    scores = score_network(graph, tensors, partial(_feeds, samples, size), how, progress=progress)
    return ScoredWeights(method=config.method, scores=scores)


def _open_network(
    path: Path, decisions: Sequence[Decision], source: Path, progress: StepProgress
) -> tuple[RunnableGraph, list[PrunableTensor], list[Decision]]:
    from nm2trt.prune.calibrated.onnx_graph import RunnableGraph
    from nm2trt.prune.calibrated.onnx_layers import find_prunable

    progress("opening the model", 0, 0)
    graph = RunnableGraph(path)
    tensors, settled = find_prunable(graph, decisions)
    if not tensors:
        dense = next((d for d in settled if d.pattern is None and d.weight.layer.reduction_axis is not None), None)
        why = "" if dense is None else f" ({dense.weight.layer.name}: {dense.reason})"
        raise InputError(f"no weight can be pruned with data{why}", where=source, hint="prune it without --data")
    return graph, tensors, settled


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """The network pruned but for some layers."""

    dense: tuple[str, ...]
    network: PrunedNetwork
    agreement: Agreement


@dataclass(slots=True, kw_only=True)
class _Work:
    path: Path
    dense: RunnableGraph | None
    """Opened and not yet changed; None: open it again."""
    tensors: list[PrunableTensor]
    config: DataConfig
    source: Source
    size: int
    checker: OutputChecker
    reference: Any
    progress: StepProgress
    ranking: list[Sensitivity] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        path: Path,
        graph: RunnableGraph,
        tensors: list[PrunableTensor],
        config: DataConfig,
        progress: StepProgress,
    ) -> _Work:
        """Open samples and dense network; what a user can get wrong is found here or in the first batch."""
        from nm2trt.calibration.agreement import OutputChecker

        source, size = _open_samples(graph, tensors, config)
        reference: Any = path
        if graph.narrow:
            import onnx

            reference = onnx.ModelProto()
            reference.CopyFrom(graph.model())
        return cls(
            path=path,
            dense=graph,
            tensors=tensors,
            config=config,
            source=source,
            size=size,
            checker=OutputChecker(reference, partial(source.held_out, size), source.task, path, changed="pruned"),
            reference=reference,
            progress=progress,
        )

    def search(self) -> _Attempt:
        """Prune; with --max-drop keep the fewest of the most sensitive layers dense that bring the drop within it."""
        first = self.attempt(())
        found, self.ranking = find_fewest_dense(
            first, self.config, lambda: self.rank(first.network), self.attempt, len(self.tensors)
        )
        return found

    def attempt(self, dense: tuple[str, ...]) -> _Attempt:
        from nm2trt.prune.calibrated.onnx_graph import RunnableGraph
        from nm2trt.prune.calibrated.onnx_network import PruneMethod, prune_network

        graph, self.dense = self.dense or RunnableGraph(self.path), None
        network = prune_network(
            graph,
            [tensor for tensor in self.tensors if tensor.names[0] not in dense],
            partial(_feeds, self.source, self.size),
            PruneMethod(
                method=self.config.method,
                damping=self.config.damping,
                recalibrate_norms=self.config.recalibrate_bn,
            ),
            progress=self.progress,
        )
        checked = self.checker.agreement(
            graph.model(), lambda done: self.progress("comparing with the dense network", done, 0)
        )
        return _Attempt(dense=dense, network=network, agreement=checked)

    def rank(self, network: PrunedNetwork) -> list[Sensitivity]:
        """Prune each layer alone; the one that costs most comes first."""
        from nm2trt.calibration.agreement import OutputChecker
        from nm2trt.prune.calibrated.onnx_graph import RunnableGraph

        samples = partial(find_ranking_samples, self.source, self.size)
        checker = OutputChecker(self.reference, samples, self.source.task, self.path, changed="pruned")
        graph, found = RunnableGraph(self.path), []
        for number, tensor in enumerate(self.tensors):
            self.progress("ranking layers", number, len(self.tensors))
            before = {name: graph.weight(name) for name in tensor.names}
            for name in tensor.names:
                graph.replace(name, network.weights[tensor.names[0]])
            checked = checker.agreement(graph.model())
            found.append(
                Sensitivity(layer=tensor.names[0], sqnr_db=checked.sqnr_db, score_drop_points=checked.drop_points)
            )
            for name, values in before.items():
                graph.replace(name, values)
        return sorted(found, key=lambda entry: entry.sqnr_db)


def _feeds(source: Source, size: int) -> Iterator[tuple[dict[str, Any], int]]:
    for batch in source.calibration(size):
        yield batch.feed, batch.count


def _open_samples(graph: RunnableGraph, tensors: Sequence[PrunableTensor], config: DataConfig) -> tuple[Source, int]:
    import onnx_ir as ir

    from nm2trt.calibration.graph import read_ports

    infos = [value for value in graph.model().graph.input if value.name in graph.inputs]
    ports = read_ports([ir.serde.deserialize_value_info_proto(info, None) for info in infos], graph.path)
    source = open_samples(config, ports)
    free = any(port.batch_axis is not None for port in ports)
    fixed = None if free else next((port.batch for port in ports if port.batch is not None), None)
    first = next(iter(source.calibration(1)), None)
    if first is None:
        raise InputError(
            "there is no sample to prune with, or fewer than the network's fixed batch", where=f"--data {config.data}"
        )
    if fixed is not None or config.batch_size is not None:
        return source, fixed or config.batch_size or 1
    names = list(dict.fromkeys(one.data for tensor in tensors for one in tensor.inputs))
    found = {**first.feed, **graph.session(first.feed, names).run(first.feed)}
    largest = max(found[name].nbytes for name in names) // max(first.count, 1)
    return source, max(1, min(_LARGEST_BATCH, _BATCH_BYTES // max(largest, 1)))


def _found(work: _Work, result: _Attempt, decisions: Sequence[Decision], seconds: float) -> DataPruned:
    config, network = work.config, result.network
    dense = {name for tensor in work.tensors if tensor.names[0] in result.dense for name in tensor.names}
    settled = [
        keep_dense(decision, config) if decision.weight.layer.name in dense else decision for decision in decisions
    ]
    norms = NormRecord(recalibrated=network.norms, shared=network.norms_shared, total=network.norms_total)
    record = make_record(
        config,
        data=work.source.words,
        samples=network.samples,
        norms=norms if config.recalibrate_bn else None,
        agreement=result.agreement,
        kept_dense=result.dense,
        sensitivity=work.ranking,
        seconds=seconds,
    )
    aliases = {name: tensor.names[0] for tensor in work.tensors for name in tensor.names}
    errors = {
        name: add_layer_errors([network.outcomes[first]])
        for name, first in aliases.items()
        if first in network.outcomes
    }
    return DataPruned(
        decisions=settled,
        weights={name: network.weights[first] for name, first in aliases.items() if first in network.weights},
        errors=errors,
        statistics=network.statistics,
        record=record,
        problems=find_problems(config, result.agreement),
        notes=[],
    )
