"""Pruning with data: the samples of `nm2trt calibrate`, the driver of nm2trt/prune, and what both say together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args

from nm2trt.artifacts.calibration import Agreement, Sensitivity
from nm2trt.errors import ConfigError, InputError, MachineError
from nm2trt.extras import EXTRAS, install_line, missing_modules
from nm2trt.prune.prune_schema import DataRecord, LayerError, NormRecord
from nm2trt.prune.run import DataPruned

if TYPE_CHECKING:
    from nm2trt.calibration.agreement import OutputChecker
    from nm2trt.calibration.feeds import Batch, Source
    from nm2trt.prune.calibrated.onnx_graph import RunnableGraph
    from nm2trt.prune.calibrated.onnx_layers import PrunableTensor
    from nm2trt.prune.calibrated.onnx_network import PrunedNetwork
    from nm2trt.prune.selection import Decision

StepProgress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, of how many); 0 of 0 where that is not known."""
Method = Literal["obs", "wanda", "magnitude"]

_BATCH_BYTES = 32 * 2**20
_LARGEST_BATCH = 64
_SENSITIVITY_SAMPLES = 64
_NEEDED = ("onnxruntime", "torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Samples, and how they choose and change weights.

    Raises:
        ConfigError: Values are not allowed; all of them are named.
    """

    data: str
    """As `nm2trt calibrate --data` takes it."""
    method: Method = "obs"
    """obs: optimal brain surgeon in SparseGPT's form, what stays makes up for what goes; wanda: magnitude times the
    norm of its input; magnitude: as without data, but measured."""
    damping: float = 0.01
    """obs: share of the Hessian's mean diagonal that is added to its diagonal."""
    recalibrate_bn: bool = False
    """Take mean and variance of BatchNormalization nodes behind pruned layers anew."""
    max_drop: float | None = None
    """Keep the most sensitive layers dense until the score drops by at most so many points; without labels, until the
    relative error of the outputs is at most so many per cent."""
    sensitivity: bool = False
    """Prune layer by layer and rank them."""
    samples: int = 512
    """Most samples to prune with."""
    held_out: int = 10_000
    """Most other samples to compare the pruned with the dense network on."""
    batch_size: int | None = None
    """None: by the size of the activations."""
    preprocess: str | None = None
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        wrong = []
        if self.method not in get_args(Method):
            wrong.append(f"unknown --method {self.method!r}, choose {', '.join(get_args(Method))}")
        if not 0 <= self.damping <= 1:
            wrong.append(f"--damping {self.damping:g} is not between 0 and 1")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            wrong.append(f"--max-drop {self.max_drop:g} is not between 0 and 100")
        counts = (("--calibration-samples", self.samples), ("--held-out", self.held_out))
        for option, value in (*counts, ("--batch-size", 1 if self.batch_size is None else self.batch_size)):
            if value < 1:
                wrong.append(f"{option} {value} is less than 1")
        if wrong:
            raise ConfigError("; ".join(wrong))


def check_machine() -> None:
    """Refuse early where ONNX Runtime or torch, which hands out the samples, is missing.

    Raises:
        MachineError: One is.
    """
    missing = [module for module in missing_modules("calibrate") if module in _NEEDED and module in EXTRAS["calibrate"]]
    if missing:
        raise MachineError(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed",
            where="prune with data",
            hint=install_line("calibrate"),
        )


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
    from nm2trt.prune.calibrated.onnx_graph import RunnableGraph
    from nm2trt.prune.calibrated.onnx_layers import find_prunable

    started = time.perf_counter()
    progress("opening the model", 0, 0)
    graph = RunnableGraph(path)
    tensors, settled = find_prunable(graph, decisions)
    if not tensors:
        dense = next((d for d in settled if d.pattern is None and d.weight.layer.reduction_axis is not None), None)
        why = "" if dense is None else f" ({dense.weight.layer.name}: {dense.reason})"
        raise InputError(f"no weight can be pruned with data{why}", where=source, hint="prune it without --data")
    work = _Work.open(path, graph, tensors, config, progress)
    result = work.search()
    return _found(work, result, settled, time.perf_counter() - started)


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
            self._feeds,
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

        checker = OutputChecker(self.reference, self._first_samples, self.source.task, self.path, changed="pruned")
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

    def _feeds(self) -> Iterator[tuple[dict[str, Any], int]]:
        for batch in self.source.calibration(self.size):
            yield batch.feed, batch.count

    def _first_samples(self) -> Iterator[Batch]:
        """Calibration samples for the ranking, so that held-out ones stay unseen."""
        done = 0
        for batch in self.source.calibration(min(self.size, _SENSITIVITY_SAMPLES)):
            if done >= _SENSITIVITY_SAMPLES:
                return
            done += batch.count
            yield batch


class Attempt(Protocol):
    """A network that was pruned but for some layers."""

    @property
    def agreement(self) -> Agreement:
        """With the dense network, on held-out samples."""


AnyAttempt = TypeVar("AnyAttempt", bound=Attempt)


def find_fewest_dense(
    first: AnyAttempt,
    config: DataConfig,
    rank: Callable[[], list[Sensitivity]],
    attempt: Callable[[tuple[str, ...]], AnyAttempt],
    layer_count: int,
) -> tuple[AnyAttempt, list[Sensitivity]]:
    """With `max_drop`, keep the fewest of the most sensitive layers dense that bring the drop within it.

    Args:
        first: All layers pruned.
        config: `max_drop`, and whether layers are ranked anyway.
        rank: Gives the layers, the most sensitive first.
        attempt: Prunes anew but for some layers.
        layer_count: How many can be pruned; one always is.

    Returns:
        The network, which misses `max_drop` where none is within it; and the ranking, empty where nobody needed it.
    """
    limit = config.max_drop
    too_much = limit is not None and not drop_of(first.agreement) <= limit
    ranking = rank() if config.sensitivity or too_much else []
    if limit is None or not too_much or layer_count < 2:
        return first, ranking
    from nm2trt.calibration.sensitivity import find_fewest

    order = [entry.layer for entry in ranking]
    drops: dict[int, float] = {}
    best: dict[int, AnyAttempt] = {}

    def good(count: int) -> bool:
        if count not in drops:
            found = attempt(tuple(order[:count]))
            drops[count] = drop_of(found.agreement)
            # Weights of one network at a time: the best so far, or the last.
            if drops[count] <= limit or not any(drops[known] <= limit for known in best):
                best.clear()
                best[count] = found
        return drops[count] <= limit

    return best[find_fewest(len(order) - 1, good)], ranking


def drop_of(agreement: Agreement) -> float:
    """Points of the score; without labels the relative error in per cent."""
    points = agreement.drop_points
    return 100 * relative_error(agreement) if points is None else points


def make_record(
    config: DataConfig,
    *,
    data: str,
    samples: int,
    norms: NormRecord | None,
    agreement: Agreement,
    kept_dense: tuple[str, ...],
    sensitivity: Sequence[Sensitivity],
    seconds: float,
) -> DataRecord:
    """What the document says of the samples and the whole network; see `DataRecord`."""
    return DataRecord(
        method=config.method,
        damping=config.damping,
        data=data,
        samples=samples,
        norms=norms,
        agreement=agreement,
        relative_error=relative_error(agreement),
        max_drop=config.max_drop,
        kept_dense=kept_dense,
        sensitivity=tuple(sensitivity),
        seconds=seconds,
    )


def relative_error(agreement: Agreement) -> float:
    """Norm of the differences over the norm of the reference's output, of the worst output."""
    return float(10 ** (-agreement.sqnr_db / 20))


def _open_samples(graph: RunnableGraph, tensors: Sequence[PrunableTensor], config: DataConfig) -> tuple[Source, int]:
    import onnx_ir as ir

    from nm2trt.calibration.graph import read_ports
    from nm2trt.calibration.sources import open_data

    infos = [value for value in graph.model().graph.input if value.name in graph.inputs]
    ports = read_ports([ir.serde.deserialize_value_info_proto(info, None) for info in infos], graph.path)
    source = open_data(
        config.data,
        ports,
        samples=config.samples,
        held_out=config.held_out,
        preprocess=config.preprocess,
        data_dir=config.data_dir,
    )
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
    from dataclasses import replace

    config, network = work.config, result.network
    dense = {name for tensor in work.tensors if tensor.names[0] in result.dense for name in tensor.names}
    settled = [
        replace(decision, pattern=None, reason=f"kept dense by --max-drop {config.max_drop:g}")
        if decision.weight.layer.name in dense
        else decision
        for decision in decisions
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
        name: _layer_error(network.outcomes[first]) for name, first in aliases.items() if first in network.outcomes
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


def _layer_error(outcome: Any) -> LayerError:
    energy = outcome.dense_energy

    def share(error: float) -> float:
        return float(error / energy) if energy > 0 else 0.0

    return LayerError(
        error=share(outcome.error),
        magnitude_error=share(outcome.magnitude_error),
        dense_energy=float(energy),
        damping=outcome.damping,
        damped=outcome.damped,
        dead_columns=outcome.dead_columns,
        magnitude_rows=outcome.magnitude_rows,
    )


def find_problems(config: DataConfig, agreement: Agreement) -> list[str]:
    """What makes a pruned network fail: outputs that are no numbers, a drop above `max_drop`."""
    problems = [one.problem for one in agreement.outputs if one.problem]
    drop = drop_of(agreement)
    if config.max_drop is not None and not drop <= config.max_drop:
        scored = agreement.drop_points is not None
        what = f"the score drops by {drop:.2f} points" if scored else f"the outputs differ by {drop:.2f} %"
        problems.append(f"{what}, more than --max-drop {config.max_drop:g}")
    return problems
