"""Which layers are worth sparsifying: every layer costs accuracy, few of them bring most of the speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nm2trt.errors import ConfigError
from nm2trt.estimate.eligible import names_of
from nm2trt.estimate.network import FEW_ROWS, LayerEstimate, NetworkEstimate, totals
from nm2trt.selectors import escape_glob

ENOUGH = 0.95
"""Share of the attainable saving that a plan without a target goes for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One more layer made sparse."""

    layer: LayerEstimate
    saved_us: float
    sensitivity: float | None
    speedup: float
    """Of the network with all layers up to this one sparse."""
    weights_share: float
    """Of the weights in products, those in the layers made sparse so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to make sparse, what to keep dense, and the options that say so."""

    estimate: NetworkEstimate
    """Of the planned network."""
    steps: tuple[Step, ...]
    """Every layer that gains, the one that is worth most first."""
    chosen_steps: int
    target: float | None
    reached: bool
    best_speedup: float
    sparse: tuple[LayerEstimate, ...]
    dense: tuple[LayerEstimate, ...]
    """Could be sparse, but is not worth it."""
    unnamed: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def train_arguments(self) -> tuple[str, ...]:
        """For `nm2trt train`, which matches modules; layers that M does not divide stay dense there by themselves."""
        dense = [layer.geometry.torch_name for layer in self.dense if layer.geometry.torch_name]
        # Only a layer that is named escapes the default that leaves the classifier dense.
        last = self.sparse[-1].geometry.torch_name if self._classifier_is_sparse() else ""
        return (
            "--pattern=2:4",
            *((f"--layer={escape_glob(last)}=2:4",) if last else ()),
            *(f"--exclude={escape_glob(name)}" for name in dict.fromkeys(dense)),
        )

    @property
    def prune_arguments(self) -> tuple[str, ...]:
        """For `nm2trt prune` of the ONNX file, which matches tensors."""
        last = self.sparse[-1].geometry.weight if self._classifier_is_sparse() else ""
        return (
            "--pattern=2:4",
            *((f"--layer={escape_glob(last)}=2:4",) if last else ()),
            *(f"--exclude={escape_glob(layer.geometry.weight)}" for layer in self.dense),
        )

    def _classifier_is_sparse(self) -> bool:
        products = [layer for layer in self.estimate.layers if layer.geometry.weight]
        return bool(self.sparse) and self.sparse[-1] is products[-1] and self.sparse[-1].geometry.kind == "gemm"


def make_plan(
    estimate: NetworkEstimate, *, target: float | None = None, sensitivity: Mapping[str, float] | None = None
) -> Plan:
    """Choose layers until the target, or most of what can be had, is reached.

    Args:
        estimate: The network with every layer that could be sparse taken for sparse.
        target: Speed-up of the whole network to reach; None: ENOUGH of the attainable saving.
        sensitivity: Cost of making a layer sparse by weight, node or module name (any unit, larger is worse); layers
            are then ranked by time saved for each unit of it, else by time saved. Layers that it does not name get
            its median.

    Raises:
        ConfigError: The target is no speed-up, or the sensitivities name no layer of this network.
    """
    if target is not None and not 1 < target <= 2:
        raise ConfigError(f"--target {target:g} is no speed-up by 2:4", hint="use more than 1 and at most 2")
    candidates = [layer for layer in estimate.layers if layer.sparse is not None and layer.chosen]
    costs, notes = _costs(candidates, sensitivity)
    waiting = sum(layer.expectation == "open" and layer.geometry.m <= FEW_ROWS for layer in estimate.layers)
    if waiting:
        notes.append(f"{waiting} layers have at most {FEW_ROWS} rows: whether a sparse kernel is faster there is open")
    candidates.sort(key=lambda layer: -(layer.dense.total_us - layer.best_us) / costs.get(layer.geometry.name, 1.0))
    steps = _steps(estimate, candidates, costs if sensitivity else {})
    best = steps[-1].speedup if steps else 1.0
    wanted = target if target is not None else 1 / (1 - ENOUGH * (1 - 1 / best))
    chosen = next((index + 1 for index, step in enumerate(steps) if step.speedup >= wanted - 1e-9), len(steps))
    picked = {step.layer.geometry.name for step in steps[:chosen]}
    layers = tuple(
        layer if layer.geometry.name in picked else replace(layer, chosen=False) for layer in estimate.layers
    )
    # A choice that the plan did not make is no longer open.
    closed = tuple(layer if layer.chosen else replace(layer, sparse=None, expectation="") for layer in layers)
    planned = totals(closed, estimate.gpu, estimate.precision, estimate.inputs, estimate.constants, estimate.notes)
    sparse = tuple(layer for layer in planned.layers if layer.chosen)
    eligible = {layer.geometry.name for layer in estimate.layers if layer.sparse is not None}
    return Plan(
        estimate=planned,
        steps=tuple(steps),
        chosen_steps=chosen,
        target=target,
        reached=target is None or best >= target,
        best_speedup=best,
        sparse=sparse,
        dense=tuple(layer for layer in planned.layers if layer.geometry.name in eligible and not layer.chosen),
        unnamed=tuple(
            layer.geometry.weight
            for layer in planned.layers
            if layer.geometry.name in eligible and not layer.geometry.torch_name
        ),
        notes=tuple(notes),
    )


def _steps(estimate: NetworkEstimate, candidates: list[LayerEstimate], costs: Mapping[str, float]) -> list[Step]:
    dense_us = 1e3 * estimate.dense_ms.value
    weights = sum(layer.geometry.weight_elements for layer in estimate.layers) or 1
    saved, pruned, steps = 0.0, 0, []
    for layer in candidates:
        gain_us = layer.dense.total_us - layer.best_us
        saved += gain_us
        pruned += layer.geometry.weight_elements
        steps.append(
            Step(
                layer=layer,
                saved_us=gain_us,
                sensitivity=costs.get(layer.geometry.name),
                speedup=dense_us / (dense_us - saved),
                weights_share=pruned / weights,
            )
        )
    return steps


def _costs(
    candidates: list[LayerEstimate], sensitivity: Mapping[str, float] | None
) -> tuple[dict[str, float], list[str]]:
    if not sensitivity:
        return {}, []
    found: dict[str, float] = {}
    for layer in candidates:
        for name in names_of(layer.geometry):
            if name in sensitivity:
                found[layer.geometry.name] = sensitivity[name]
                break
    if not found:
        raise ConfigError(
            f"--sensitivity: none of its {len(sensitivity)} names is a layer that gains here",
            hint="name weights, nodes or modules as `nm2trt estimate --json` does",
        )
    ordered = sorted(found.values())
    middle = ordered[len(ordered) // 2]
    missing = [layer for layer in candidates if layer.geometry.name not in found]
    # Of two layers without any cost the faster one still comes first.
    least = max(ordered[-1], 1e-30) * 1e-6
    costs = {layer.geometry.name: max(found.get(layer.geometry.name, middle), least) for layer in candidates}
    note = f"{len(missing)} of {len(candidates)} layers have no sensitivity in the file: taken for the median"
    return costs, [note] if missing else []
