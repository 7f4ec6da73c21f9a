"""The training loop: epochs of steps, evaluation, and the records of both."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from nm2trt.data import DataSet, Task
from nm2trt.errors import EXIT_BAD_VERDICT, Nm2trtError
from nm2trt.training.batches import epoch_batches, evaluation_loader, train_loader
from nm2trt.training.config import TrainConfig
from nm2trt.training.sad import Sad
from nm2trt.training.schedule import cosine_with_warmup
from nm2trt.training.sparsifier import Sparsifier, sparsify

_STEP_RECORDS_PER_EPOCH = 10

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, a few words)."""


class DivergedError(Nm2trtError):
    """The loss stopped being a number."""

    exit_code = EXIT_BAD_VERDICT


@dataclass(slots=True)
class History:
    """What was recorded: rows of metrics.jsonl and of sad.csv."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    sad: list[dict[str, object]] = field(default_factory=list)
    last_sad: Sad | None = None


@dataclass(slots=True)
class Trained:
    """A finished run, the network back on the CPU without wrappers."""

    model: nn.Module
    sparsifier: Sparsifier
    history: History
    accelerator: Accelerator
    seconds: float


def fit(config: TrainConfig, data: DataSet, model: nn.Module, progress: Progress) -> Trained:
    """Train `model` in place.

    Device, mixed precision, gradient accumulation and processes are accelerate's business; sparsity is the
    sparsifier's, which hooks the bare optimizer after accelerate has placed the weights.

    Raises:
        ConfigError: No layer can take the pattern.
        DivergedError: The training loss is NaN or infinite.
    """
    started = time.perf_counter()
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        gradient_accumulation_steps=config.accumulation,
    )
    pin_memory = accelerator.device.type == "cuda"
    train = train_loader(data, batch_size=config.batch_size, seed=config.seed, pin_memory=pin_memory)
    test = evaluation_loader(data, pin_memory=pin_memory)
    bare = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    wrapped, optimizer, train, test = accelerator.prepare(model, bare, train, test)
    sparsifier = sparsify(
        accelerator.unwrap_model(wrapped),
        bare,
        config.pattern,
        config.method,
        decay=config.decay,
        layers=config.layers,
        exclude=config.exclude,
    )
    steps_per_epoch = math.ceil(len(train) / config.accumulation)
    steps = steps_per_epoch * config.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        bare,
        lambda step: cosine_with_warmup(step, steps=steps, warmup_steps=round(config.warmup_epochs * steps_per_epoch)),
    )
    history = History()
    for epoch in range(1, config.epochs + 1):
        epoch_started = time.perf_counter()
        loss = _epoch(accelerator, wrapped, optimizer, schedule, train, data.task, history, epoch, steps, progress)
        accuracy, test_loss = evaluate(accelerator, wrapped, test, data.task)
        history.last_sad = sparsifier.sad()
        history.sad.extend(history.last_sad.rows(epoch))
        history.metrics.append(
            {
                "kind": "epoch",
                "epoch": epoch,
                "step": epoch * steps_per_epoch,
                "train_loss": loss,
                "test_loss": test_loss,
                "test_accuracy": accuracy,
                "lr": schedule.get_last_lr()[0],
                "seconds": time.perf_counter() - epoch_started,
            }
        )
        progress(epoch * steps_per_epoch, steps, f"epoch {epoch}: accuracy {accuracy:.4f}")
    sparsifier.remove()
    return Trained(
        model=accelerator.unwrap_model(wrapped).cpu(),
        sparsifier=sparsifier,
        history=history,
        accelerator=accelerator,
        seconds=time.perf_counter() - started,
    )


def _epoch(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    train: DataLoader[Any],
    task: Task,
    history: History,
    epoch: int,
    steps: int,
    progress: Progress,
) -> float:
    """Run one epoch and return its mean loss over samples of this process."""
    model.train()
    total = torch.zeros((), device=accelerator.device)
    samples = 0
    step = schedule.last_epoch
    every = max(1, len(train) // accelerator.gradient_accumulation_steps // _STEP_RECORDS_PER_EPOCH)
    for x_BX, y_B in epoch_batches(train, epoch):
        with accelerator.accumulate(model):
            with accelerator.autocast():
                loss = task.losses(model(x_BX), y_B).mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        total += loss.detach() * len(y_B)
        samples += len(y_B)
        if not accelerator.sync_gradients:
            continue
        rate = schedule.get_last_lr()[0]
        schedule.step()
        step += 1
        if step % every == 0:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise DivergedError(
                    f"the loss is {value} at step {step} of {steps}", where=f"epoch {epoch}", mend="lower --lr"
                )
            history.metrics.append({"kind": "step", "step": step, "epoch": epoch, "loss": value, "lr": rate})
            progress(step, steps, f"epoch {epoch}: loss {value:.3f}")
    mean = float(total) / samples
    if not math.isfinite(mean):
        raise DivergedError(f"the loss is {mean} over epoch {epoch}", mend="lower --lr")
    return mean


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: nn.Module, test: DataLoader[Any], task: Task) -> tuple[float, float]:
    """Score (0 to 1 for accuracy) and mean loss over all samples, gathered from every process."""
    model.eval()
    won = possible = loss = 0.0
    samples = 0
    for x_BX, y_B in test:
        output = model(x_BX)
        points_B2, losses_B = accelerator.gather_for_metrics((task.score(output, y_B), task.losses(output, y_B)))
        won += float(points_B2[:, 0].sum())
        possible += float(points_B2[:, 1].sum())
        loss += float(losses_B.sum())
        samples += len(losses_B)
    return won / possible, loss / samples
