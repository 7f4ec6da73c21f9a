"""`nm2trt train` as a function: a configuration in, a run folder out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from nm2trt.artifacts import (
    LayerRecord,
    ModelRecord,
    RunDocument,
    RunResult,
    SadTotals,
    SessionRecord,
    TeacherRecord,
    ThreadsRecord,
    file_records,
    host_record,
    write_atomic,
)
from nm2trt.artifacts.code_trust import code_names, record_written
from nm2trt.data import DataSet, load_data
from nm2trt.data.tasks import Task, better_of
from nm2trt.errors import InputError
from nm2trt.models import build_model
from nm2trt.report.curves import Score, write_curves_png
from nm2trt.threads import ThreadChoice, choose_threads, torch_threads
from nm2trt.training import checkpoint
from nm2trt.training.checkpoint import checkpoint_bytes
from nm2trt.training.config import FILE as CONFIG
from nm2trt.training.config import TrainConfig, check_unedited
from nm2trt.training.init import load_init
from nm2trt.training.loop import Progress, Trained, Trainer
from nm2trt.training.processes import (
    decide_on_first,
    is_first_process,
    process_count,
    share_per_process,
    start_processes,
)
from nm2trt.training.run_folder import run_folder
from nm2trt.training.sad import Sad, sad_csv
from nm2trt.training.sharding import check_launch
from nm2trt.training.state import FILE as STATE
from nm2trt.training.state import read_state
from nm2trt.training.teacher import load_teacher
from nm2trt.training.trackers import DVCLIVE, TENSORBOARD, check_trackers
from nm2trt.training.work import forward_gflop

_OF_TRACKERS = (f"{TENSORBOARD}/", f"{DVCLIVE}/")


def train(
    config: TrainConfig,
    output: Path,
    *,
    force: bool = False,
    resume: bool = False,
    trust: bool = False,
    progress: Progress = lambda *_: None,
) -> RunDocument:
    """Train and leave a run folder: checkpoint, configuration, metrics, SAD, curves, run.json.

    The folder is complete when run.json is there. Until then it holds the configuration and, from the end of the
    first epoch on, `state/last.pt`; a run that ends early without a state leaves nothing.

    Args:
        config: The run.
        output: The folder to make.
        force: Replace a folder that nm2trt wrote.
        resume: Go on from the state in `output`, to the same end as if the run had never stopped.
        trust: Import the code that a teacher's run.json names although this machine did not write it.
        progress: Called after steps and epochs.

    Raises:
        MachineError: A tracker is not installed, or cannot start.
        ConfigError: The folder exists; there is nothing to shard over; no layer can take the pattern; the state is
            of another run.
        InputError: The data or the state cannot be used.
        DivergedError: The loss is no number; the last state is kept.
        InterruptedRunError: SIGINT or SIGTERM came; the state is saved.
    """
    if resume and (output / RunDocument.FILE).is_file():
        return RunDocument.read(output)
    check_launch(fsdp=config.fsdp, precision=config.precision)
    check_trackers(config.trackers())
    start_processes(cpu=config.device == "cpu")
    with ExitStack() as stack:
        decide_on_first(lambda: _start_folder(stack, config, output, force=force, resume=resume))
        saved = read_state(output) if (output / STATE).is_file() else None
        if saved is not None:
            check_unedited(saved.get("settings", {}), config, output)
        batch_size = _batch_size(config, saved)
        data = load_data(config.data, config.data_dir, image_size=config.image_size, randaugment=config.randaugment)
        set_seed(config.seed)
        model = build_model(config.model, data.input_shape, data.classes)
        if config.init is not None:
            load_init(model, config.init)
        _check_weights(model, config)
        teacher = load_teacher(config, data, trust=trust)
        gflop = batch_size * forward_gflop(model, data.input_shape)
        trainer = Trainer(config, data, model, folder=output, progress=progress, batch_size=batch_size, teacher=teacher)
        threads = None
        if trainer.device.type == "cpu":
            threads = choose_threads(gflop, before=saved.get("threads") if saved else None)
            stack.enter_context(torch_threads(threads))
        if saved is not None:
            trainer.resume(saved)
        trained = trainer.run()
        if is_first_process():
            _write_files(output, config, data.task, trained)
            taught = teacher.record if teacher else None
            _document(output, config, data, trained, threads, taught).write(output)
        trained.accelerator.wait_for_everyone()
    return RunDocument.read(output)


def _start_folder(stack: ExitStack, config: TrainConfig, output: Path, *, force: bool, resume: bool) -> None:
    """Make or take up the run's folder, on the first process; the stack closes it."""
    folder = stack.enter_context(run_folder(output, force=force, resume=resume))
    if resume:
        return
    content = config.to_toml()
    write_atomic(folder / CONFIG, content)
    # --resume asks whether this machine wrote it, where it names code or files.
    if code_names({"model": config.model, "data": config.data}) or config.data_dir or config.init or config.teacher:
        record_written(content)


def _batch_size(config: TrainConfig, saved: Mapping[str, Any] | None) -> int:
    """Samples per process and micro-batch, so that all processes take as many together as when the run was started."""
    if saved is None:
        return config.batch_size
    before = saved["processes"]
    return share_per_process(saved.get("batch_size", config.batch_size), before, process_count())


def _check_weights(model: nn.Module, config: TrainConfig) -> None:
    """Refuse a start from weights that are no numbers, which training would blame on the learning rate."""
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            count = int((~weight.isfinite()).sum())
            raise InputError(
                f"{count} of the {weight.numel()} values of {name} are NaN or infinite before training",
                where=config.init or f"model {config.model}",
            )


def _write_files(folder: Path, config: TrainConfig, task: Task, trained: Trained) -> None:
    history = trained.history
    content = checkpoint_bytes(trained.state, trained.patterns, config.method)
    write_atomic(folder / checkpoint.FILE, content)
    write_atomic(folder / "metrics.jsonl", "".join(json_row(row) for row in history.metrics))
    write_atomic(folder / "sad.csv", sad_csv(history.sad))
    score = Score(task.score_name, better_of(task))
    title = f"{config.model} on {config.data}, {config.method}"
    if config.method != "dense":
        title += f" {config.pattern}"
    write_curves_png(history.metrics, history.sad, folder / "curves.png", title, score=score)


def json_row(row: Mapping[str, Any]) -> str:
    """One line of metrics.jsonl; a number that is none becomes null, which JSON can hold."""
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def _document(
    folder: Path,
    config: TrainConfig,
    data: DataSet,
    trained: Trained,
    threads: ThreadChoice | None,
    teacher: TeacherRecord | None,
) -> RunDocument:
    last: dict[str, Any] = [row for row in trained.history.metrics if row["kind"] == "epoch"][-1]
    return RunDocument(
        config=config.recorded(),
        method=config.method,
        pattern=None if config.method == "dense" else config.pattern,
        teacher=teacher,
        data=data.name,
        data_source=data.source,
        train_samples=len(data.train),
        test_samples=len(data.test),
        model=ModelRecord(
            name=config.model,
            input_shape=data.input_shape,
            classes=data.classes,
            parameters=trained.parameters,
        ),
        result=RunResult(
            score_name=data.task.score_name,
            score_better=better_of(data.task),
            test_score=last["test_score"],
            test_loss=last["test_loss"],
            train_loss=last["train_loss"],
            epochs=config.epochs,
            steps=last["step"],
            seconds=trained.history.seconds,
            sad=_totals(trained.history.last_sad),
        ),
        layers=[
            LayerRecord(
                name=entry.name,
                module=entry.module,
                kind=entry.kind,
                shape=entry.shape,
                pattern=entry.pattern,
                reason=entry.reason,
            )
            for entry in trained.sparsifier.report()
        ],
        device=_device(trained, threads),
        threads=ThreadsRecord(**asdict(threads)) if threads else None,
        sessions=[SessionRecord(**asdict(session)) for session in trained.history.sessions],
        # Event files go on growing when a run is resumed, and carry the machine's name.
        files={name: record for name, record in file_records(folder).items() if not name.startswith(_OF_TRACKERS)},
        host=host_record(),
    )


def _totals(sad: Sad | None) -> SadTotals | None:
    if sad is None:
        return None
    total = sad.total
    return SadTotals(
        from_start=total.start,
        from_start_normalized=total.start_normalized,
        cumulative=total.flips,
        flips_per_weight=total.flips_per_weight,
    )


def _device(trained: Trained, threads: ThreadChoice | None) -> str:
    device = trained.accelerator.device
    if device.type == "cuda":
        return f"{trained.accelerator.num_processes} x {torch.cuda.get_device_name(device)}"
    processes = trained.accelerator.num_processes
    several = f"{processes} processes, each " if processes > 1 else ""
    count = threads.threads if threads else torch.get_num_threads()
    return f"{device.type}, {several}{count} thread{'s' if count > 1 else ''}"
