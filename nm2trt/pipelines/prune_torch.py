"""Pruning torch networks with data: a run, or a checkpoint whose network is named, pruned in PyTorch itself."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
from nm2trt.selectors import escape_glob

if TYPE_CHECKING:
    from nm2trt.calibration.agreement import Network, NetworkChecker
    from nm2trt.calibration.feeds import Source
    from nm2trt.export.source import ExportSource
    from nm2trt.prune.calibrated.solve import PrunedColumns
    from nm2trt.prune.calibrated.torch_network import LayerResult
    from nm2trt.prune.selection import Decision

_BATCH = 64


def prune_torch_with_data(
    path: Path, decisions: Sequence[Decision], *, config: DataConfig, network: ExportSource, progress: StepProgress
) -> DataPruned:
    """Prune the chosen weights of a checkpoint with samples that run through its network; nothing is written.

    Args:
        path: The checkpoint, dense.
        decisions: What was chosen among its tensors.
        config: Samples and method.
        network: The same weights in a network.
        progress: Told of layers and samples.

    Raises:
        ConfigError: The data cannot be named so.
        InputError: The samples cannot be used, or no chosen tensor is a weight that the network reads.
    """
    started = time.perf_counter()
    settled = _match_parameters(decisions, network)
    chosen = {d.weight.layer.name: d for d in settled if d.pattern is not None}
    if not chosen:
        why = f" ({settled[0].weight.layer.name}: {settled[0].reason})" if settled else ""
        raise InputError(f"no weight can be pruned with data{why}", where=path, hint="prune it without --data")
    work = _Work.open(network, chosen, config, progress)
    result = work.search()
    settled = [_settled(decision, result, config) for decision in settled]
    record = make_record(
        config,
        data=work.source.words,
        samples=work.samples,
        norms=NormRecord(recalibrated=result.norms, shared=0, total=work.norm_count) if config.recalibrate_bn else None,
        agreement=result.agreement,
        kept_dense=result.dense,
        sensitivity=work.ranking,
        seconds=time.perf_counter() - started,
    )
    return DataPruned(
        decisions=settled,
        weights={d.weight.layer.name: _as_stored(d, result) for d in settled if d.pattern is not None},
        errors={name: add_layer_errors(found) for name in chosen if (found := result.solved(name))},
        statistics=work.statistics(result),
        record=record,
        problems=find_problems(config, result.agreement),
        notes=[],
    )


def _match_parameters(decisions: Sequence[Decision], network: ExportSource) -> list[Decision]:
    """Leave those dense whose tensor is not a parameter of the network with the same values."""
    parameters = dict(network.module.named_parameters())
    settled = []
    for decision in decisions:
        reason = ""
        if decision.pattern is not None:
            parameter = parameters.get(decision.weight.layer.name)
            if parameter is None:
                reason = "the network has no parameter of this name"
            else:
                stored = decision.weight.read()
                same = stored.shape == tuple(parameter.shape) and np.array_equal(
                    stored.astype(np.float32), parameter.detach().numpy()
                )
                reason = "" if same else "the network's parameter of this name holds other values"
        settled.append(replace(decision, pattern=None, reason=reason) if reason else decision)
    return settled


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """The network pruned but for some layers."""

    dense: tuple[str, ...]
    module: Any
    results: list[LayerResult]
    agreement: Agreement
    norms: int

    def solved(self, name: str) -> list[PrunedColumns]:
        """What was found for each slice of a tensor."""
        return [found.details for found in self.results if found.name == name and found.details is not None]


@dataclass(slots=True, kw_only=True)
class _Work:
    dense: ExportSource
    chosen: dict[str, Decision]
    config: DataConfig
    source: Source
    size: int
    checker: NetworkChecker
    progress: StepProgress
    ranking: list[Sensitivity] = field(default_factory=list)
    samples: int = 0
    """In the last whole pass over those that choose."""

    @classmethod
    def open(
        cls, network: ExportSource, chosen: dict[str, Decision], config: DataConfig, progress: StepProgress
    ) -> _Work:
        """Open samples; what a user can get wrong is found here or in the first batch."""
        from nm2trt.calibration.agreement import NetworkChecker
        from nm2trt.calibration.graph import Port

        source = open_samples(config, [Port(spec.name, spec.dtype, (None, *spec.shape)) for spec in network.inputs])
        size, dense = config.batch_size or _BATCH, _runner(network, network.module)
        return cls(
            dense=network,
            chosen=chosen,
            config=config,
            source=source,
            size=size,
            checker=NetworkChecker(dense, partial(source.held_out, size), source.task, "pruned"),
            progress=progress,
        )

    @property
    def norm_count(self) -> int:
        """Batch norm layers that keep statistics."""
        return sum(name.endswith("running_mean") for name, _ in self.dense.module.named_buffers())

    def search(self) -> _Attempt:
        """Prune; with --max-drop keep the fewest of the most sensitive layers dense that bring the drop within it."""
        first = self.attempt(())
        found, self.ranking = find_fewest_dense(
            first, self.config, lambda: self.rank(first), self.attempt, len(self.chosen)
        )
        return found

    def attempt(self, dense: tuple[str, ...]) -> _Attempt:
        from nm2trt.prune.calibrated.batch_norm import recalibrate_batch_norm
        from nm2trt.prune.calibrated.torch_network import prune_network

        module = copy.deepcopy(self.dense.module)
        wanted = {escape_glob(n): d.pattern for n, d in self.chosen.items() if n not in dense and d.pattern is not None}
        others = [n for n, p in module.named_parameters() if p.dim() > 1 and (n not in self.chosen or n in dense)]
        results = prune_network(
            module,
            self._inputs,
            next(iter(wanted.values())),
            layer_patterns=wanted,
            exclude=[escape_glob(name) for name in others],
            method=self.config.method,
            damping=self.config.damping,
            progress=lambda result, done, total: self.progress(f"pruning {result.name}", done, total),
        )
        norms = recalibrate_batch_norm(module, self._inputs) if self.config.recalibrate_bn else 0
        return _Attempt(
            dense=dense,
            module=module,
            results=results,
            agreement=self.checker.compare(
                _runner(self.dense, module), lambda done: self.progress("comparing with the dense network", done, 0)
            ),
            norms=norms,
        )

    def rank(self, first: _Attempt) -> list[Sensitivity]:
        """Prune each layer alone; the one that costs most comes first."""
        import torch

        from nm2trt.calibration.agreement import NetworkChecker

        samples = partial(find_ranking_samples, self.source, self.size)
        checker = NetworkChecker(_runner(self.dense, self.dense.module), samples, self.source.task, "pruned")
        module, found = copy.deepcopy(self.dense.module), []
        pruned = {result.name for result in first.results if result.pattern is not None}
        for number, name in enumerate(sorted(pruned)):
            self.progress("ranking layers", number, len(pruned))
            parameter = module.get_parameter(name)
            with torch.no_grad():
                before = parameter.detach().clone()
                parameter.copy_(first.module.get_parameter(name))
                checked = checker.compare(_runner(self.dense, module))
                parameter.copy_(before)
            found.append(Sensitivity(layer=name, sqnr_db=checked.sqnr_db, score_drop_points=checked.drop_points))
        return sorted(found, key=lambda entry: entry.sqnr_db)

    def statistics(self, result: _Attempt) -> dict[str, NDArray[Any]]:
        """Running means and variances that were measured again, by their names in the checkpoint."""
        if not self.config.recalibrate_bn:
            return {}
        ends = ("running_mean", "running_var")
        return {name: value.numpy() for name, value in result.module.named_buffers() if name.endswith(ends)}

    def _inputs(self) -> Iterator[Any]:
        count = 0
        for batch in self.source.calibration(self.size):
            count += batch.count
            yield _arguments(self.dense, batch.feed)
        self.samples = count


def _arguments(network: ExportSource, feed: dict[str, Any]) -> Any:
    import torch

    given = {spec.name: torch.from_numpy(np.ascontiguousarray(feed[spec.name])) for spec in network.inputs}
    return given if any(spec.keyword for spec in network.inputs) else tuple(given.values())


def _runner(network: ExportSource, module: Any) -> Network:
    """Runs a module with the network's inputs."""
    from nm2trt.prune.calibrated.torch_network import output_tensors
    from nm2trt.prune.calibrated.torch_uses import as_in_inference, run_batches

    def run(feed: dict[str, Any]) -> dict[str, NDArray[Any]]:
        with as_in_inference(module):
            (output,) = run_batches(module, lambda: [_arguments(network, feed)], "samples")
        return {f"output {place}": tensor.numpy() for place, tensor in enumerate(output_tensors(output))}

    return run


def _settled(decision: Decision, result: _Attempt, config: DataConfig) -> Decision:
    """Leave dense what the network does not read as a product, or what costs too much."""
    name = decision.weight.layer.name
    if decision.pattern is None:
        return decision
    if name in result.dense:
        return keep_dense(decision, config)
    rows = [found for found in result.results if found.name == name]
    refused = next((found.reason for found in rows if found.pattern is None), None)
    return decision if refused is None else replace(decision, pattern=None, reason=refused)


def _as_stored(decision: Decision, result: _Attempt) -> NDArray[Any]:
    parameter = result.module.get_parameter(decision.weight.layer.name)
    array: NDArray[Any] = parameter.detach().numpy().astype(decision.weight.read().dtype)
    return array
