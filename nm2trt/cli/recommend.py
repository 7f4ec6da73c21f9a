"""`nm2trt recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nm2trt.cli.estimate import network_options, run_estimate
from nm2trt.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from nm2trt.estimate.recommend import Plan

_MOST_STEPS = 24
_LEFT = ("made sparse next",)


@click.command(name="recommend")
@network_options
@click.option("--target", type=float, metavar="X", help="Speed-up to reach, such as 1.1; else 95 % of what there is.")
@click.option(
    "--sensitivity",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What each layer costs when sparse: JSON, CSV, or what `nm2trt calibrate --sensitivity` wrote.",
)
@json_option
def command(
    model: Path,
    gpu: str | None,
    gpu_file: Path | None,
    precision: str | None,
    batch: int | None,
    shapes: tuple[str, ...],
    dense_layers: tuple[str, ...],
    target: float | None,
    sensitivity: Path | None,
    as_json: bool,
) -> int:
    """Say which layers are worth sparsifying, before any training.

    Every sparse layer costs accuracy; most of the speed comes from a few. The layers of MODEL, an ONNX file or build
    folder (pruned or not), are ranked by the time that 2:4 sparsity would save, divided by their cost where
    --sensitivity gives one. Ends in the options for `nm2trt train` and `nm2trt prune`.

    \b
    Exit 1: --target cannot be reached, or no layer would gain.
    """
    from nm2trt.errors import EXIT_BAD_VERDICT, EXIT_OK
    from nm2trt.estimate.recommend import make_plan
    from nm2trt.estimate.sensitivity import read_sensitivity

    costs, note = ({}, "") if sensitivity is None else read_sensitivity(sensitivity)
    estimate = run_estimate(model, gpu, gpu_file, precision, batch, shapes, dense_layers, "2:4")
    plan = make_plan(estimate, target=target, sensitivity=costs)
    if as_json:
        from nm2trt.estimate.estimate_schema import plan_document

        document = plan_document(str(model), plan)
        document = document.model_copy(update={"notes": (*((note,) if note else ()), *document.notes)})
        print_json(document.to_json())
    else:
        click.echo("\n".join(lines_of(str(model), plan, note)))
    return EXIT_OK if plan.reached and plan.sparse else EXIT_BAD_VERDICT


def lines_of(source: str, plan: Plan, note: str = "") -> list[str]:
    """The plan for people."""
    from nm2trt.cli.render.estimate import aligned, plain

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
    from nm2trt.cli.render.estimate import layer_name

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
    import shlex

    return [f"  {command_name} ... " + " \\\n    ".join(shlex.quote(argument) for argument in arguments)]


def _few(names: tuple[str, ...]) -> str:
    from nm2trt.cli.render.estimate import plain

    shown = ", ".join(map(plain, names[:4]))
    return f"{shown}, ..." if len(names) > 4 else shown
