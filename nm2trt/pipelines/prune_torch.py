"""Pruning torch networks with data: a run, or a checkpoint whose network is named, pruned in PyTorch itself."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nm2trt.errors import InputError
from nm2trt.pipelines.prune_data import DataConfig, StepProgress, find_fewest_dense, find_problems, make_record
from nm2trt.prune.prune_schema import LayerError, NormRecord
from nm2trt.prune.run import DataPruned
from nm2trt.selectors import escape_glob

if TYPE_CHECKING:
    from nm2trt.artifacts.calibration import Agreement, Sensitivity
    from nm2trt.calibration.feeds import Batch, Source
    from nm2trt.export.source import ExportSource
    from nm2trt.prune.calibrated.torch_network import LayerResult
    from nm2trt.prune.selection import Decision

_BATCH = 64
_SENSITIVITY_SAMPLES = 64


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
    work = _Work(dense=network, chosen=chosen, config=config, source=_open_source(network, config), progress=progress)
    result = work.search()
    settled = [_settled(decision, result, config) for decision in settled]
    record = make_record(
        config,
        data=work.source.words,
        samples=result.samples,
        norms=NormRecord(recalibrated=result.norms, shared=0, total=work.norm_count) if config.recalibrate_bn else None,
        agreement=result.agreement,
        kept_dense=result.dense,
        sensitivity=work.ranking,
        seconds=time.perf_counter() - started,
    )
    return DataPruned(
        decisions=settled,
        weights={d.weight.layer.name: _as_stored(d, result) for d in settled if d.pattern is not None},
        errors={name: found for name in chosen if (found := _layer_error(name, result, config)) is not None},
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
    samples: int
    norms: int


@dataclass(slots=True, kw_only=True)
class _Work:
    dense: ExportSource
    chosen: dict[str, Decision]
    config: DataConfig
    source: Source
    progress: StepProgress
    ranking: list[Sensitivity] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.config.batch_size or _BATCH

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
            agreement=self.compare(module, self.source.held_out(self.size), "comparing with the dense network"),
            samples=sum(batch.count for batch in self.source.calibration(self.size)),
            norms=norms,
        )

    def compare(self, module: Any, batches: Iterator[Batch], what: str) -> Agreement:
        """Run samples through both networks."""
        from nm2trt.calibration.agreement import compare_networks

        def done(samples: int) -> None:
            self.progress(what, samples, 0)

        return compare_networks(
            self._runner(self.dense.module), self._runner(module), batches, self.source.task, "pruned", done
        )

    def rank(self, first: _Attempt) -> list[Sensitivity]:
        """Prune each layer alone; the one that costs most comes first."""
        import torch

        from nm2trt.artifacts.calibration import Sensitivity

        module, found = copy.deepcopy(self.dense.module), []
        pruned = {result.name for result in first.results if result.pattern is not None}
        for number, name in enumerate(sorted(pruned)):
            self.progress("ranking layers", number, len(pruned))
            parameter = module.get_parameter(name)
            with torch.no_grad():
                before = parameter.detach().clone()
                parameter.copy_(first.module.get_parameter(name))
                checked = self.compare(module, self._first_samples(), "ranking layers")
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
        for batch in self.source.calibration(self.size):
            yield self._arguments(batch.feed)

    def _arguments(self, feed: dict[str, Any]) -> Any:
        import torch

        given = {spec.name: torch.from_numpy(np.ascontiguousarray(feed[spec.name])) for spec in self.dense.inputs}
        return given if any(spec.keyword for spec in self.dense.inputs) else tuple(given.values())

    def _runner(self, module: Any) -> Any:
        from nm2trt.prune.calibrated.torch_network import output_tensors
        from nm2trt.prune.calibrated.torch_uses import as_in_inference, run_batches

        def run(feed: dict[str, Any]) -> dict[str, NDArray[Any]]:
            with as_in_inference(module):
                (output,) = run_batches(module, lambda: [self._arguments(feed)], "samples")
            return {f"output {place}": tensor.numpy() for place, tensor in enumerate(output_tensors(output))}

        return run

    def _first_samples(self) -> Iterator[Batch]:
        """Calibration samples for the ranking, so that held-out ones stay unseen."""
        done = 0
        for batch in self.source.calibration(min(self.size, _SENSITIVITY_SAMPLES)):
            if done >= _SENSITIVITY_SAMPLES:
                return
            done += batch.count
            yield batch


def _open_source(network: ExportSource, config: DataConfig) -> Source:
    from nm2trt.calibration.graph import Port
    from nm2trt.calibration.sources import open_data

    return open_data(
        config.data,
        [Port(spec.name, spec.dtype, (None, *spec.shape)) for spec in network.inputs],
        samples=config.samples,
        held_out=config.held_out,
        preprocess=config.preprocess,
        data_dir=config.data_dir,
    )


def _settled(decision: Decision, result: _Attempt, config: DataConfig) -> Decision:
    """Leave dense what the network does not read as a product, or what costs too much."""
    name = decision.weight.layer.name
    if decision.pattern is None:
        return decision
    if name in result.dense:
        return replace(decision, pattern=None, reason=f"kept dense by --max-drop {config.max_drop:g}")
    rows = [found for found in result.results if found.name == name]
    refused = next((found.reason for found in rows if found.pattern is None), None)
    return decision if refused is None else replace(decision, pattern=None, reason=refused)


def _as_stored(decision: Decision, result: _Attempt) -> NDArray[Any]:
    parameter = result.module.get_parameter(decision.weight.layer.name)
    array: NDArray[Any] = parameter.detach().numpy().astype(decision.weight.read().dtype)
    return array


def _layer_error(name: str, result: _Attempt, config: DataConfig) -> LayerError | None:
    """Of a tensor; the slices of a packed one are added up."""
    details = [found.details for found in result.results if found.name == name and found.details is not None]
    if not details:
        return None
    energy = sum(one.dense_energy for one in details)
    return LayerError(
        error=sum(one.error for one in details) / energy if energy else 0.0,
        magnitude_error=sum(one.magnitude_error for one in details) / energy if energy else 0.0,
        dense_energy=float(energy),
        damping=max(one.damping for one in details) if config.method == "obs" else 0.0,
        damped=any(one.damped for one in details),
        dead_columns=sum(one.dead_columns for one in details),
        magnitude_rows=sum(one.magnitude_rows for one in details),
    )
