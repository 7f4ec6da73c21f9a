"""A recommendation on the terminal."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from nm2trt.cli.render.estimate import aligned, layer_name, plain

if TYPE_CHECKING:
    from nm2trt.pipelines.recommend import Plan, Recommendation

_MOST_STEPS = 24
_LEFT = ("made sparse next",)


def recommendation_lines(found: Recommendation) -> list[str]:
    """The ranking, what it comes to, and the options for `train` and `prune`."""
    source, plan, note = found.source, found.plan, found.note
    estimate = plan.estimate
    lines = [f"{plain(source)} on {estimate.gpu.name}, {estimate.precision}: which layers are worth sparsifying", ""]
    if plan.steps:
        lines += [*aligned([_head(plan), *_rows(plan)], _LEFT), ""]
    lines += [*_verdict(plan), *(f"note     {text}" for text in (note, *plan.notes, *estimate.notes) if text)]
    if plan.sparse:
        lines += ["", "for training (modules in torch):", *_wrapped("nm2trt train", plan.train_arguments)]
        if plan.unnamed:
            lines.append(f"  {len(plan.unnamed)} weights do not say which module they are: {_few(plan.unnamed)}")
        lines += ["for pruning the ONNX file (its tensors):", *_wrapped("nm2trt prune", plan.prune_arguments)]
    if estimate.outside:
        lines += ["", f"outside the data: {', '.join(estimate.outside)}; the ranking holds better than the figures"]
    return [*lines, "", "estimate, nothing was measured"]


def _head(plan: Plan) -> tuple[str, ...]:
    cost = ("cost",) if any(step.sensitivity is not None for step in plan.steps) else ()
    return ("sparse", "dense", "made sparse next", "saves us", *cost, "of weights", "speed-up", "")


def _rows(plan: Plan) -> list[tuple[str, ...]]:
    shown = _shown(len(plan.steps), plan.chosen_steps)
    rows, columns = [], len(_head(plan))
    for index, step in enumerate(plan.steps):
        if index not in shown:
            if index - 1 in shown:
                rows.append(("...", *[""] * (columns - 1)))
            continue
        cost = (f"{step.sensitivity:.4g}",) if step.sensitivity is not None else ()
        rows.append(
            (
                str(index + 1),
                str(len(plan.steps) - index - 1),
                layer_name(step.layer),
                f"{step.saved_us:.1f}",
                *cost,
                f"{100 * step.weights_share:.1f} %",
                f"{step.speedup:.3f}x",
                "<- plan" if index + 1 == plan.chosen_steps else "",
            )
        )
    return rows


def _shown(count: int, chosen: int) -> set[int]:
    """All steps of a short list; else the first ones, those around the plan, and the last."""
    if count <= _MOST_STEPS:
        return set(range(count))
    return {*range(_MOST_STEPS // 2), *range(max(0, chosen - 3), min(count, chosen + 2)), count - 1}


def _verdict(plan: Plan) -> list[str]:
    estimate = plan.estimate
    if not plan.steps:
        return ["no layer would gain: nothing here is worth sparsifying for speed"]
    speedup = estimate.speedup
    line = f"plan     {len(plan.sparse)} layers sparse, {len(plan.dense)} that could be stay dense:"
    lines = [
        f"{line} {speedup.value:.3f}x [{speedup.low:.2f}, {speedup.high:.2f}] of {plan.best_speedup:.3f}x to be had"
    ]
    if not plan.reached:
        lines.append(f"target   {plan.target:g}x is out of reach: all layers together give {plan.best_speedup:.3f}x")
    return lines


def _wrapped(command_name: str, arguments: tuple[str, ...]) -> list[str]:
    return [f"  {command_name} ... " + " \\\n    ".join(shlex.quote(argument) for argument in arguments)]


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(map(plain, names[:4]))
    return f"{shown}, ..." if len(names) > 4 else shown
