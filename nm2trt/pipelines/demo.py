"""The demo: every stage in turn, and what is concluded from them, in one folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nm2trt.artifacts import DemoDocument, file_records, host_record, staged_folder, write_atomic
from nm2trt.artifacts.files import check_output
from nm2trt.pipelines import demo_report
from nm2trt.pipelines.demo_stages import DemoSettings, Say, commands, run_stages
from nm2trt.pipelines.progress import ignore_progress
from nm2trt.training.config import load_config

__all__ = ["DemoDocument", "DemoSettings", "demo_settings", "run_demo"]


def demo_settings(
    output: Path, options: Mapping[str, Any], *, seeds: int = 3, duration_s: float = 4.0, force: bool = False
) -> DemoSettings:
    """Check what the demo is asked to do, before any work is done.

    Args:
        output: Its folder.
        options: Of the training runs: fields of `TrainConfig`; None where nothing was said.
        seeds: Runs of each method.
        duration_s: Seconds of timing per batch size.
        force: Replace a folder that nm2trt wrote.

    Raises:
        ConfigError: The folder exists, or settings are wrong: all of them in one line.
    """
    check_output(output, force=force)
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("epochs") == 1:
        given["warmup_epochs"] = 0
    return DemoSettings(config=load_config(None, given), seeds=seeds, duration_s=duration_s)


def run_demo(
    settings: DemoSettings, output: Path, *, force: bool = False, say: Say | None = None, doing: Say | None = None
) -> DemoDocument:
    """Train, verify, export, profile and report into one folder, which appears whole or not at all.

    Args:
        settings: What to train and how long to time.
        output: Folder to make.
        force: Replace a folder that nm2trt wrote.
        say: Called with a line when a step is done.
        doing: Called with what is being done.

    Returns:
        What was written as demo.json; its problems are what a user must not miss.

    Raises:
        ConfigError: The folder exists.
        InputError: The data cannot be used.
        OSError: The disk is full; nothing is left.

    Example:
        Settings are checked before minutes of training:

        >>> from nm2trt.errors import ConfigError
        >>> try:
        ...     run_demo(demo_settings(Path("demo"), {"epochs": 0}), Path("demo"))
        ... except ConfigError as error:
        ...     print(error.what)
        epochs = 0: input should be greater than or equal to 1
    """
    started = time.perf_counter()
    with staged_folder(output, force=force) as folder:
        stages = run_stages(settings, folder, say=say or ignore_progress, doing=doing or ignore_progress)
        write_atomic(folder / "report.html", demo_report.page(stages, folder))
        problems = demo_report.problems(stages)
        document = DemoDocument(
            data=settings.config.data,
            model=settings.config.model,
            pattern=settings.config.pattern,
            seeds=settings.seeds,
            score_name=stages.dense[0].result.score_name,
            dense_scores=tuple(run.result.test_score for run in stages.dense),
            sparse_scores=tuple(run.result.test_score for run in stages.sparse),
            rows=demo_report.rows(stages),
            facts=demo_report.facts(stages),
            commands=commands(settings),
            problems=problems,
            verdict="fail" if problems else "pass",
            seconds=time.perf_counter() - started,
            files=file_records(folder),
            host=host_record(),
        )
        document.write(folder)
    return document
