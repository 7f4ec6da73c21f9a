"""What the demo concludes from its stages: rows of the closing table, the four facts, problems, the page."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

from nm2trt.artifacts import DemoRow, Facts, NumericsRecord, RunDocument
from nm2trt.pipelines.demo_stages import Stages, commands
from nm2trt.pipelines.export import failures
from nm2trt.report import Badge, Drawing, KeyFigure, Prose, Section, Table, render_page
from nm2trt.report.curves import Score, curves_svg
from nm2trt.report.sections import (
    build_section,
    commands_section,
    environment_section,
    facts_section,
    latency_section,
    layers_section,
)

LARGEST_SCORE_LOSS = 0.01
"""The sparse networks' mean score may be this much worse than the dense ones'."""


def rows(stages: Stages) -> list[DemoRow]:
    """The closing table; every row names the file that holds its figure."""
    dense, sparse = (_scores(runs) for runs in (stages.dense, stages.sparse))
    score = stages.dense[0].result.score_name
    sad = [run.result.sad for run in stages.sparse if run.result.sad is not None]
    meant = {layer.name for layer in stages.sparse[0].layers if layer.pattern is not None}
    checked = [layer for document in stages.verified for layer in document.layers if layer.name in meant]
    conform = sum(layer.verdict == "conforms" for layer in checked)
    engines = stages.build.engines
    compiled = [engine for engine in engines if engine.file is not None]
    table = [
        DemoRow(what=f"{score}, dense", value=_mean(dense), detail=_spread(dense), source="runs/dense-*/run.json"),
        DemoRow(what=f"{score}, SR-STE", value=_mean(sparse), detail=_spread(sparse), source="runs/sr-ste-*/run.json"),
        DemoRow(
            what="SAD",
            value=f"{statistics.mean(one.from_start_normalized for one in sad):.3f} a weight",
            detail=f"first mask to last; {statistics.mean(one.flips_per_weight for one in sad):.2f} flips a weight",
            source="runs/sr-ste-*/sad.csv",
        ),
        DemoRow(
            what="layers that conform",
            value=f"{conform} of {len(checked)}",
            detail=f"to {stages.settings.config.pattern}, in {len(stages.verified)} checkpoints",
            source="runs/sr-ste-*/checkpoint.safetensors",
        ),
        _error_row("fp32", stages.sparse_fp32.numerics),
        _error_row("fp16", stages.build.numerics),
        DemoRow(
            what="engines compiled",
            value=f"{len(compiled)} of {len(engines)}",
            detail=f"{stages.build.facts.chosen.evidence}" if engines else stages.build.engines_note,
            source="builds/sparse-fp16/build.json",
        ),
    ]
    for batch in stages.report.batches:
        ratio = batch.ratio
        table.append(
            DemoRow(
                what=f"dense / sparse, batch {batch.batch}",
                value=f"{ratio.value:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}]",
                detail=f"latency on {stages.report.runner.provider}; {batch.sentence}",
                source="profile/report.json",
            )
        )
    return table


def _error_row(precision: str, numerics: NumericsRecord | None) -> DemoRow:
    if numerics is None:
        return DemoRow(
            what=f"ONNX error, {precision}", value="not compared", source=f"builds/sparse-{precision}/build.json"
        )
    return DemoRow(
        what=f"ONNX error, {precision}",
        value=f"{numerics.max_rel_error:.1e}",
        detail=f"of the largest output, against torch (bound {numerics.tolerance:.0e})",
        source=f"builds/sparse-{precision}/build.json",
    )


def facts(stages: Stages) -> Facts:
    """Legal, eligible and chosen as the fp16 build proved them, faster as the profile measured it."""
    return stages.build.facts.model_copy(update={"faster": stages.report.facts.faster})


def problems(stages: Stages) -> list[str]:
    """Everything that makes the demo's verdict bad."""
    found = [
        f"{document.source}: {problem}"
        for document in stages.verified
        if document.verdict != "pass"
        for problem in document.problems
    ]
    for build in (stages.build, stages.sparse_fp32, stages.dense_fp32):
        found += failures(build)
    dense, sparse = (statistics.mean(_scores(runs)) for runs in (stages.dense, stages.sparse))
    result = stages.dense[0].result
    loss = dense - sparse if result.score_better == "higher" else sparse - dense
    if loss > LARGEST_SCORE_LOSS:
        found.append(
            f"SR-STE reached {result.score_name} {sparse:.2%}, more than {100 * LARGEST_SCORE_LOSS:.0f} point worse "
            f"than the dense {dense:.2%}; train longer with --epochs"
        )
    return found


def page(stages: Stages, folder: Path) -> str:
    """Render the report; `folder` holds the runs, whose curves are drawn."""
    config = stages.settings.config
    verdict = problems(stages)
    dense, sparse = (_scores(runs) for runs in (stages.dense, stages.sparse))
    batch = stages.report.batches[-1]
    shown = [row for row in rows(stages) if row.what in ("layers that conform", "engines compiled")]
    return render_page(
        f"{config.model} on {config.data}, {config.pattern}",
        f"Trained with SR-STE, checked, exported, compiled, timed; seeds 0 to {stages.settings.seeds - 1}",
        (
            facts_section(facts(stages)),
            _training_section(stages, folder),
            layers_section(stages.build.pattern),
            build_section(stages.build),
            latency_section(stages.report),
            commands_section(commands(stages.settings)),
            environment_section(stages.build.host),
        ),
        headline="; ".join(verdict) if verdict else _headline(stages),
        key_figures=(
            KeyFigure(_mean(sparse), f"{stages.dense[0].result.score_name}, SR-STE", f"dense: {_mean(dense)}"),
            *(KeyFigure(row.value, row.what) for row in shown),
            KeyFigure(
                f"{batch.ratio.value:.2f}x",
                f"dense / sparse latency, batch {batch.batch}",
                f"[{batch.ratio.low:.3f}, {batch.ratio.high:.3f}] on a CPU without 2:4 kernels",
            ),
        ),
        created_utc=stages.report.created_utc,
    )


def _headline(stages: Stages) -> str:
    dense, sparse = (_scores(runs) for runs in (stages.dense, stages.sparse))
    return (
        f"{stages.settings.config.pattern} sparse at {stages.dense[0].result.score_name} {_mean(sparse)}, dense at "
        f"{_mean(dense)}. The pattern is real; {_speed(stages)}"
    )


def _speed(stages: Stages) -> str:
    if stages.report.runner.sparse_kernels:
        return stages.report.headline
    return "whether a sparse kernel runs and is faster cannot be seen on this machine."


def _training_section(stages: Stages, folder: Path) -> Section:
    table = Table(
        ("run", f"test {stages.dense[0].result.score_name}", "test loss", "flips a weight", "seconds"),
        tuple(
            (
                Badge(f"{run.method} {run.config['seed']}"),
                f"{run.result.test_score:.2%}",
                f"{run.result.test_loss:.4f}" if run.result.test_loss is not None else "no number",
                f"{run.result.sad.flips_per_weight:.2f}" if run.result.sad else "",
                f"{run.result.seconds:.1f}",
            )
            for pair in zip(stages.dense, stages.sparse, strict=True)
            for run in pair
        ),
        numeric=frozenset(range(1, 5)),
    )
    first = stages.sparse[0]
    kept_dense = [f"{layer.name} ({layer.reason})" for layer in first.layers if layer.pattern is None]
    return Section(
        "Training",
        (
            table,
            Drawing(_curves(folder / "runs" / "sr-ste-0", first, "sparse"), "SR-STE, seed 0."),
            Drawing(
                _curves(folder / "runs" / "dense-0", first, "dense"),
                "Dense, seed 0. Its SAD is that of the masks its weights would have.",
            ),
            Prose(f"Left dense: {'; '.join(kept_dense)}.", quiet=True),
        ),
        lead=f"{first.train_samples} training and {first.test_samples} test samples of {first.data} "
        f"({first.data_source}), {first.result.epochs} epochs, on {first.device}.",
    )


def _curves(run: Path, document: RunDocument, name: str) -> str:
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    with (run / "sad.csv").open(encoding="utf-8", newline="") as file:
        sad = list(csv.DictReader(file))
    score = Score(document.result.score_name, document.result.score_better)
    return curves_svg(metrics, sad, score=score, name=name)


def _scores(runs: list[RunDocument]) -> list[float]:
    return [run.result.test_score for run in runs]


def _mean(scores: list[float]) -> str:
    return f"{statistics.mean(scores):.2%}"


def _spread(scores: list[float]) -> str:
    if len(scores) == 1:
        return "one seed"
    return f"mean of {len(scores)} seeds, {min(scores):.2%} to {max(scores):.2%}"
