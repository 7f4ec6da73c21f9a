"""Recommend layers to sparsify."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nm2trt.estimate.estimate_schema import PlanDocument, plan_document
from nm2trt.estimate.recommend import Plan, make_plan
from nm2trt.estimate.sensitivity import read_sensitivity
from nm2trt.pipelines.estimate import EstimateConfig, estimate_network

__all__ = ["Plan", "Recommendation", "recommend_layers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """Which layers are worth sparsifying."""

    source: str
    plan: Plan
    """The ranking, and the options for `nm2trt train` and `nm2trt prune`."""
    note: str = ""
    """About the file of sensitivities."""

    @property
    def passed(self) -> bool:
        """Whether the target is reached by at least one layer."""
        return self.plan.reached and bool(self.plan.sparse)

    def document(self) -> PlanDocument:
        """The same findings with schema, version and time."""
        document = plan_document(self.source, self.plan)
        return document.model_copy(update={"notes": (*((self.note,) if self.note else ()), *document.notes)})


def recommend_layers(
    source: Path | str,
    config: EstimateConfig,
    *,
    target: float | None = None,
    sensitivity: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Recommendation:
    """Rank layers by the time that 2:4 sparsity would save, and choose until the target is reached.

    Args:
        source: An ONNX file or a build folder, pruned or not.
        config: Where it would run; `assume` is 2:4 whatever it says.
        target: Speed-up to reach, as a factor; None: 95 % of what there is.
        sensitivity: What each layer costs when sparse: JSON, CSV, or a file of `nm2trt calibrate --sensitivity`.
        progress: Told what is being done.

    Raises:
        ConfigError: As `estimate_network`; the target is no speed-up, or the sensitivities are another network's.
        InputError: A file cannot be read.

    Example:
        >>> found = recommend_layers("dense.onnx", EstimateConfig(gpu="a100-pcie-40gb", batch=32))
        >>> found.passed, [layer.geometry.weight for layer in found.plan.sparse]
        (False, [])
    """
    costs, note = ({}, "") if sensitivity is None else read_sensitivity(sensitivity)
    estimate = estimate_network(source, replace(config, assume="2:4"), progress=progress)
    return Recommendation(source=str(source), plan=make_plan(estimate, target=target, sensitivity=costs), note=note)
