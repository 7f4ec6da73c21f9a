"""SR-STE and the other methods in a Hugging Face `Trainer` (extra `huggingface`).

The Trainer makes the optimizer in `train`, lets accelerate wrap it, loads model and optimizer of a checkpoint, and only
then calls `on_train_begin`: that is where the model is made sparse. It steps the optimizer once per accumulated batch,
after unscaling and clipping; a step that fp16's loss scaler skips reaches no optimizer. `on_save` comes after all
files of a checkpoint are written. (transformers 5.24, `Trainer._prepare_for_training` and `_run_epoch`.)
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from nm2trt.artifacts import write_atomic
from nm2trt.errors import ConfigError
from nm2trt.extras import explain_missing_module
from nm2trt.integrations.trainer_sparsity import TrainerSparsity, load_weights_only
from nm2trt.pattern import NMPattern
from nm2trt.training import Sparsifier

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError as error:
    raise explain_missing_module(error.name, where="nm2trt.integrations.huggingface") or error from None

STATE_FILE = "sparsifier.pt"
"""In each checkpoint folder of the Trainer."""
SAD_FILE = "sad.csv"
"""In the Trainer's output folder."""


class SparsifyCallback(TrainerCallback):
    """Keeps a network N:M around every optimizer step of a Trainer, and every checkpoint of it.

        Trainer(model, arguments, ..., callbacks=[SparsifyCallback("2:4", freeze_from=0.75)])

    `train(resume_from_checkpoint=...)` goes on as if training had not stopped. SAD is recorded whenever the Trainer
    logs a loss: into that entry of its history, and layer by layer into `sad.csv` in its output folder.

    Args:
        pattern: N of M weights are kept along the reduction axis.
        method: One of `nm2trt.training.METHODS`.
        freeze_from: Share of all steps after which the masks are held; None never. The Trainer's AdamW wants it for
            "ste" and "sr-ste", since moving masks spoil its second moments (STEP, Lu et al., ICML 2023).
        resume_from: The checkpoint folder that `train` is told to resume from, where it is not
            `OUTPUT/checkpoint-STEP`: the Trainer does not tell its callbacks.
        options: Other keywords of `nm2trt.training.sparsify`.

    Raises:
        ConfigError: An argument is wrong.
    """

    def __init__(
        self,
        pattern: str | NMPattern = "2:4",
        method: str = "sr-ste",
        *,
        freeze_from: float | None = None,
        resume_from: Path | str | None = None,
        **options: Any,
    ) -> None:
        self._sparsity = TrainerSparsity(pattern, method, freeze_from, options)
        self._resume_from = None if resume_from is None else Path(resume_from)

    @property
    def sparsifier(self) -> Sparsifier:
        """What `sparsify` returned; it stays on the model after training, so that another `train` goes on from W."""
        return self._sparsity.sparsifier

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Make the model sparse, and go on from the checkpoint that the Trainer has loaded."""
        del control
        model = objects["model"]
        folder = self._checkpoint(args, state) if state.global_step else None
        if folder is not None:
            _load_renamed_weights(model, folder)
        self._sparsity.begin(model, objects["optimizer"], total_steps=state.max_steps)
        if folder is None:
            return
        path = folder / STATE_FILE
        if path.is_file():
            self._sparsity.restore(load_weights_only(path), where=path)
            return
        warnings.warn(
            f"{folder} has no {STATE_FILE}: the masks start from its weights, and pruned weights from 0", stacklevel=2
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Hold the masks in the last part."""
        del args, control, objects
        self._sparsity.after_step(state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any) -> None:
        """Record SAD beside a loss of training."""
        del control
        logs = objects.get("logs") or {}
        if "loss" not in logs or not self._sparsity.has_begun:
            return
        found = self._sparsity.record(state.epoch or 0.0)
        # The Trainer has copied the logs into its history, and told other callbacks, before it tells this one.
        logs.update(found)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(found)
        if args.should_save:
            self._sparsity.write_sad(_output_of(args) / SAD_FILE)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any) -> None:
        """Put what was pruned beside the optimizer's state."""
        del control, objects
        # Trials of a search are saved elsewhere and never resumed.
        if args.save_only_model or state.is_hyper_param_search:
            return
        # Sharded weights are gathered by all processes.
        content = self._sparsity.state()
        if args.should_save:
            buffer = io.BytesIO()
            torch.save(content, buffer)
            write_atomic(_folder_of(args, state) / STATE_FILE, buffer.getvalue())

    def _checkpoint(self, args: TrainingArguments, state: TrainerState) -> Path:
        """The folder that is resumed from."""
        named = [self._resume_from, args.resume_from_checkpoint, _folder_of(args, state)]
        for folder in (Path(name) for name in named if isinstance(name, str | Path)):
            if folder.is_dir():
                return folder
        raise ConfigError(
            f"training goes on from step {state.global_step}, and {_folder_of(args, state)} is not there",
            where="SparsifyCallback",
            hint="give it resume_from=FOLDER, the one that train(resume_from_checkpoint=FOLDER) was given",
        )


def _folder_of(args: TrainingArguments, state: TrainerState) -> Path:
    return _output_of(args) / f"checkpoint-{state.global_step}"


def _output_of(args: TrainingArguments) -> Path:
    # The Trainer puts a folder of its own here where none was given.
    return Path(args.output_dir or "trainer_output")


def _load_renamed_weights(model: Any, folder: Path) -> None:
    """Load what `from_pretrained` finds in a checkpoint where its names are not the model's.

    transformers 5 saves some networks (ViT) under their older names. `from_pretrained` translates; the Trainer, when it
    resumes, loads by name and leaves the rest at its initial values.
    """
    saved: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            saved.update(file.keys())
    if saved and not saved <= model.state_dict().keys() and hasattr(type(model), "from_pretrained"):
        model.load_state_dict(type(model).from_pretrained(folder).state_dict())
