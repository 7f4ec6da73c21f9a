"""The training loop: epochs of steps, evaluation, the records of both, and a state to go on from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from torch import nn

from nm2trt.data import DataSet
from nm2trt.data.tasks import Task
from nm2trt.errors import EXIT_BAD_VERDICT, ConfigError, Nm2trtError
from nm2trt.pattern import NMPattern
from nm2trt.training.batches import epoch_batches, evaluation_loader, train_loader
from nm2trt.training.blame import NetworkCalls, losses_of, workers_live
from nm2trt.training.checkpoint import check_saveable
from nm2trt.training.config import TrainConfig
from nm2trt.training.entry import sparsify
from nm2trt.training.evaluation import evaluate
from nm2trt.training.history import History, Session
from nm2trt.training.interruption import InterruptedRunError, StopRequest, stop_request
from nm2trt.training.loss_record import EpochLosses
from nm2trt.training.matmul_precision import matmul_precision
from nm2trt.training.methods import Method
from nm2trt.training.optimizer import make_optimizer
from nm2trt.training.processes import decide_on_first
from nm2trt.training.recorder import NoRecorder, Recorder
from nm2trt.training.schedule import cosine_cycles
from nm2trt.training.sharding import is_sharded, reshard, shard, share_buffers, whole
from nm2trt.training.sparsifier import Sparsifier
from nm2trt.training.state import Parts, Position, position_of, restore, save_state
from nm2trt.training.teacher import Teacher
from nm2trt.training.trackers import Trackers

_STEP_RECORDS_PER_EPOCH = 10
_IMAGE_DIMENSIONS = 4

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, a few words)."""


class DivergedError(Nm2trtError):
    """The loss stopped being a number."""

    exit_code = EXIT_BAD_VERDICT


@dataclass(slots=True)
class Trained:
    """A finished run."""

    state: dict[str, torch.Tensor]
    """The network's state dict, whole and on the CPU."""
    parameters: int
    patterns: dict[str, NMPattern]
    """Of every sparse weight, under each of its names."""
    sparsifier: Sparsifier
    history: History
    accelerator: Accelerator


class Trainer:
    """One run. Device, mixed precision, accumulation and processes are accelerate's business.

    Sparsity is the sparsifier's, which hooks the bare optimizer after accelerate has placed the weights.

    Args:
        config: The run.
        data: What to train on.
        model: The network, trained in place.
        folder: Where `state/last.pt` is kept.
        progress: Called after steps and epochs.
        batch_size: Samples per process and micro-batch, where the run was started with another number of processes;
            None takes the configuration's.
        teacher: What the network is pulled towards, whole on each process; None trains by the task alone.

    Raises:
        ConfigError: No layer can take the pattern.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: DataSet,
        model: nn.Module,
        *,
        folder: Path,
        progress: Progress,
        batch_size: int | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self._config, self._folder, self._progress = config, folder, progress
        self._batch_size = config.batch_size if batch_size is None else batch_size
        self._task: Task = data.task
        self._input_shape = data.input_shape
        self._samples = {"train": len(data.train), "test": len(data.test)}
        self._calls = NetworkCalls(config.model)
        if not torch.distributed.is_initialized():
            # accelerate keeps one device and precision for the whole process; each run chooses its own.
            AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 -- it offers no public way
        self._accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision="no" if config.precision == "fp32" else config.precision,
            gradient_accumulation_steps=config.accumulation,
            # From page-locked memory, the copy to the GPU runs beside its work.
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
        )
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        layout = torch.channels_last if config.channels_last else torch.preserve_format
        self._teacher = teacher.place(self._accelerator.device, layout) if teacher else None
        pin = self._accelerator.device.type == "cuda"
        train = train_loader(
            data,
            batch_size=self._batch_size,
            seed=config.seed,
            workers=config.workers,
            pin_memory=pin,
            processes=self._accelerator.num_processes,
        )
        test = evaluation_loader(data, workers=config.workers, pin_memory=pin)
        if config.fsdp:
            # Not accelerate's: its FSDP2 needs a GPU and takes the optimizer's parameters over.
            model = shard(model, self._accelerator.device)
            self._model = self._accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        else:
            self._model = self._accelerator.prepare(model)
        self._bare = make_optimizer(config, model)
        self._optimizer, self._train, self._test = self._accelerator.prepare(self._bare, train, test)
        check_saveable(self._accelerator.unwrap_model(self._model).state_dict(), f"model {config.model}")
        self._prune_after = config.phases()[0] if len(config.phases()) > 1 else None
        per_epoch = math.ceil(len(self._train) / config.accumulation)
        self._steps_per_epoch, self._steps = per_epoch, per_epoch * config.epochs
        self._sparsifier = self._sparsify("dense" if self._prune_after else config.method)
        warmup = round(config.warmup_epochs * per_epoch)
        cycles = [epochs * per_epoch for epochs in config.phases()]
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._bare, lambda step: cosine_cycles(step, cycles=cycles, warmup_steps=warmup)
        )
        self._position, self._history = Position(), History()
        self._losses = EpochLosses(self._accelerator.device)
        self._resumed_at = 0.0
        self._recorder: Recorder = NoRecorder()

    def _sparsify(self, method: Method) -> Sparsifier:
        config = self._config
        example_BX = torch.zeros(1, *self._input_shape, device=self._accelerator.device)
        return sparsify(
            self._accelerator.unwrap_model(self._model),
            self._bare,
            config.pattern,
            method,
            decay=config.decay,
            layer_patterns=config.layers,
            exclude=config.exclude,
            mask_update_interval=config.mask_update_interval,
            total_steps=self._steps,
            decay_warmup=config.decay_warmup,
            mask_decay=config.mask_decay,
            hold_masks=config.hold_masks,
            example_inputs=example_BX,
        )

    def _prune_once(self) -> None:
        """The turn of `asp`: masks of the magnitudes of this moment, held from here on."""
        self._sparsifier.remove_hooks()
        self._sparsifier = self._sparsify("asp")

    def _parts(self) -> Parts:
        return Parts(
            accelerator=self._accelerator,
            model=self._model,
            optimizer=self._bare,
            schedule=self._schedule,
            sparsifier=self._sparsifier,
        )

    @property
    def device(self) -> torch.device:
        """Where the network is trained."""
        device: torch.device = self._accelerator.device
        return device

    def resume(self, content: dict[str, Any]) -> None:
        """Take up a saved state.

        Args:
            content: From `read_state`.

        Raises:
            ConfigError: It is of another run, or of other data.
        """
        if (before := content.get("samples", self._samples)) != self._samples:
            now = " and ".join(f"{count} {name}" for name, count in self._samples.items())
            raise ConfigError(
                f"the run was started with {before['train']} train and {before['test']} test samples, not {now}",
                where=f"data {self._config.data}",
                hint="put the data back, or start another run with these",
            )
        self._position = position_of(content, self._accelerator)
        if self._prune_after is not None and self._position.epoch > self._prune_after:
            self._prune_once()
        self._history = restore(content, self._parts(), self._folder)

    def run(self) -> Trained:
        """Train to the end.

        Raises:
            DivergedError: The training loss is NaN or infinite; the last saved state is kept.
            InterruptedRunError: Somebody asked to stop; the state is saved.
            MachineError: A tracker cannot start.
        """
        self._resumed_at = time.perf_counter() - self._history.seconds
        self._history.sessions.append(
            Session(
                from_step=self._schedule.last_epoch,
                processes=self._accelerator.num_processes,
                batch_size=self._batch_size,
                sharded=self._config.fsdp,
            )
        )
        decide_on_first(self._start_trackers)
        try:
            with stop_request() as request, matmul_precision(tf32=self._config.tf32):
                while self._position.epoch <= self._config.epochs:
                    self._epoch(request)
                    self._save()
        finally:
            self._recorder.close()
        self._sparsifier.remove_hooks()
        model = self._accelerator.unwrap_model(self._model)
        return Trained(
            state={name: value.cpu() for name, value in whole(model.state_dict()).items()},
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            patterns=_patterns(model, self._sparsifier),
            sparsifier=self._sparsifier,
            history=self._history,
            accelerator=self._accelerator,
        )

    def _start_trackers(self) -> None:
        if names := self._config.trackers():
            self._recorder = Trackers(
                names,
                self._folder,
                settings=self._config.recorded(),
                after_step=self._schedule.last_epoch,
                before=self._history.last_sad,
            )

    def _save(self) -> None:
        self._history.seconds = time.perf_counter() - self._resumed_at
        self._position.loss_sum = self._losses.total()
        settings = self._config.model_dump(mode="json")
        save_state(self._folder, self._parts(), self._position, self._history, settings=settings, samples=self._samples)

    def _epoch(self, request: StopRequest) -> None:
        """Finish the epoch at hand and move to the next."""
        position, epoch = self._position, self._position.epoch
        started = time.perf_counter()
        if epoch > self._config.epochs - self._config.freeze_epochs:
            self._sparsifier.freeze_masks()
        self._losses = EpochLosses(self._accelerator.device, position.loss_sum)
        self._model.train()
        with workers_live():
            for x_BX, y_B in epoch_batches(self._train, epoch, skip=position.batch):
                self._batch(x_BX, y_B)
                if self._accelerator.sync_gradients and self._stop_asked(request) and position.batch < len(self._train):
                    self._stop(epoch)
        self._read_losses(wait=True)
        mean = self._mean_loss()
        if not math.isfinite(mean):
            raise DivergedError(f"the loss is {mean} over epoch {epoch}", hint="lower --lr")
        score, test_loss = self._evaluate()
        row = {
            "step": self._schedule.last_epoch,
            "train_loss": mean,
            "test_loss": test_loss,
            "test_score": score,
            "lr": self._schedule.get_last_lr()[0],
            "seconds": time.perf_counter() - started,
        }
        # The steps of the run: the sparsifier's own count starts anew where `asp` prunes.
        sad = replace(self._sparsifier.record_sad(), step=self._schedule.last_epoch)
        self._history.record_epoch(epoch, sad, row)
        self._recorder.epoch(row, self._task.score_name, sad)
        self._progress(self._schedule.last_epoch, self._steps, f"epoch {epoch}: {self._task.score_name} {score:.2%}")
        self._position = Position(epoch=epoch + 1)
        self._losses = EpochLosses(self._accelerator.device)
        if epoch == self._prune_after:
            self._prune_once()

    def _evaluate(self) -> tuple[float, float]:
        sharded = is_sharded(self._accelerator.unwrap_model(self._model))
        if sharded:
            share_buffers(self._model)
        found = evaluate(self._accelerator, self._model, self._test, self._task, self._calls)
        if sharded:
            reshard(self._model)
        return found

    def _mean_loss(self) -> float:
        """Of the epoch so far, over all processes."""
        loss_sum, samples = self._losses.total(), float(self._position.samples)
        if self._accelerator.num_processes > 1:
            sums = torch.tensor([loss_sum, samples], dtype=torch.float64, device=self._accelerator.device)
            loss_sum, samples = self._accelerator.reduce(sums, reduction="sum").tolist()
        return loss_sum / samples

    def _batch(self, x_BX: torch.Tensor, y_B: torch.Tensor) -> None:
        """One micro-batch, and the optimizer's step when it is due."""
        position = self._position
        if self._config.channels_last and x_BX.ndim == _IMAGE_DIMENSIONS:
            x_BX = x_BX.contiguous(memory_format=torch.channels_last)
        with self._accelerator.accumulate(self._model):
            with self._accelerator.autocast():
                output = self._calls.forward(self._model, x_BX)
                loss = losses_of(self._task, output, y_B).mean()
                if self._teacher is not None:
                    loss = self._teacher.loss(output, self._teacher.logits(x_BX, self._calls), loss)
            self._calls.backward(self._accelerator, loss)
            self._optimizer.step()
            self._optimizer.zero_grad()
        self._losses.add(loss, len(y_B))
        position.batch += 1
        position.samples += len(y_B)
        if not self._accelerator.sync_gradients:
            return
        rate = float(self._schedule.get_last_lr()[0])
        self._schedule.step()
        step = self._schedule.last_epoch
        # On a GPU a loss is looked at with the next record, so that the host waits for no step.
        if self._accelerator.device.type != "cuda" or self._is_recorded(step):
            self._losses.record(loss, step=step, epoch=position.epoch, rate=rate)
        self._read_losses()

    def _is_recorded(self, step: int) -> bool:
        return step % max(1, self._steps_per_epoch // _STEP_RECORDS_PER_EPOCH) == 0

    def _read_losses(self, *, wait: bool = False) -> None:
        """Write the records down that have come from the device."""
        for one in self._losses.ready(wait=wait):
            if not one.all_finite:
                value = one.loss if not math.isfinite(one.loss) else math.nan
                raise _diverged(value, one.step, self._steps, one.epoch)
            if self._is_recorded(one.step):
                self._history.metrics.append(
                    {"kind": "step", "step": one.step, "epoch": one.epoch, "loss": one.loss, "lr": one.rate}
                )
                self._recorder.step(one.step, one.loss, one.rate)
                self._progress(one.step, self._steps, f"epoch {one.epoch}: loss {one.loss:.3f}")

    def _stop_asked(self, request: StopRequest) -> bool:
        """Whether any process was asked, so that all of them stop at the same step."""
        if self._accelerator.num_processes == 1:
            return request.asked
        asked = torch.tensor(float(request.asked), device=self._accelerator.device)
        return bool(self._accelerator.reduce(asked, reduction="sum") > 0)

    def _stop(self, epoch: int) -> None:
        self._read_losses(wait=True)
        self._save()
        step = self._schedule.last_epoch
        raise InterruptedRunError(
            f"stopped at step {step} of {self._steps} in epoch {epoch}",
            hint="go on with --resume",
        )


def _patterns(model: nn.Module, sparsifier: Sparsifier) -> dict[str, NMPattern]:
    named = dict(model.named_parameters(remove_duplicate=False))
    by_weight = {id(named[name]): pattern for name, pattern in sparsifier.patterns().items()}
    return {name: by_weight[id(weight)] for name, weight in named.items() if id(weight) in by_weight}


def _diverged(value: float, step: int, steps: int, epoch: int) -> DivergedError:
    if step == 1:
        return DivergedError(
            f"the loss is {value} before the first update, on samples that are all finite",
            where="step 1",
            hint="look at the network and its initial weights, not at --lr",
        )
    return DivergedError(f"the loss is {value} at step {step} of {steps}", where=f"epoch {epoch}", hint="lower --lr")
