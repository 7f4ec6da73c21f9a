"""Every stage on a small network, into one folder with a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nm2trt.artifacts import DemoDocument, file_records, host_record, staged_folder, write_atomic
from nm2trt.artifacts.files import check_output
from nm2trt.training.config import load_config

__all__ = ["DemoConfig", "DemoDocument", "run_demo"]

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """What is trained, and how long it is timed."""

    data: str = "digits"
    data_dir: Path | None = None
    model: str = "resnet8"
    pattern: str = "2:4"
    epochs: int | str = 30
    """Of every training run."""
    seeds: int = 3
    """Runs of each method."""
    duration_s: float = 4.0
    """Timing per batch size."""


def run_demo(
    output: Path, config: DemoConfig | None = None, *, force: bool = False, say: Say | None = None,
    doing: Say | None = None,
) -> DemoDocument:  # fmt: skip
    """Train, verify, export, compile, profile and report, end to end.

    Args:
        output: Folder for everything; appears whole at the end or not at all.
        config: Data set, network, epochs.
        force: Replace a folder that nm2trt wrote.
        say: Called with a line when a step is done.
        doing: Called with what is being done.

    Returns:
        What the report says; its verdict is "fail" where a stage has a problem.

    Raises:
        ConfigError: A setting is wrong, or the output exists.
        MachineError: A library of a stage is missing.
        OSError: The disk is full; nothing is left.
    """
    config, started = config or DemoConfig(), time.perf_counter()
    check_output(output, force=force)
    options = {name: getattr(config, name) for name in ("data", "data_dir", "model", "pattern", "epochs")}
    if config.epochs == 1:
        options["warmup_epochs"] = 0
    training = load_config(None, {name: value for name, value in options.items() if value is not None})
    from nm2trt.pipelines import demo_report as page
    from nm2trt.pipelines.demo import DemoSettings, commands, run_stages

    settings = DemoSettings(config=training, seeds=config.seeds, duration_s=config.duration_s)
    with staged_folder(output, force=force) as folder:
        stages = run_stages(settings, folder, say=say or _ignore, doing=doing or _ignore)
        write_atomic(folder / "report.html", page.page(stages, folder))
        problems = page.problems(stages)
        document = DemoDocument(
            data=training.data,
            model=training.model,
            pattern=training.pattern,
            seeds=config.seeds,
            score_name=stages.dense[0].result.score_name,
            dense_scores=tuple(run.result.test_score for run in stages.dense),
            sparse_scores=tuple(run.result.test_score for run in stages.sparse),
            rows=page.rows(stages),
            facts=page.facts(stages),
            commands=commands(settings),
            problems=problems,
            verdict="fail" if problems else "pass",
            seconds=time.perf_counter() - started,
            files=file_records(folder),
            host=host_record(),
        )
        document.write(folder)
    return document


def _ignore(_line: str) -> None:
    pass
