"""SR-STE and the other methods in a Lightning `Trainer` (extra `lightning`).

Lightning restores the model and the callbacks of a checkpoint, then makes the optimizers and restores them, and only
then calls `on_train_start`: that is where the model is made sparse. Its automatic optimization runs forward and
backward in a closure inside `optimizer.step`, once per accumulated batch (with fp16 before it, under the loss scaler);
the sparsifier closes the weights for the closure. (lightning 2.6, `Trainer._run` and `MixedPrecision.optimizer_step`.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nm2trt.errors import ConfigError
from nm2trt.extras import explain_missing_module
from nm2trt.integrations.trainer_sparsity import TrainerSparsity
from nm2trt.pattern import NMPattern
from nm2trt.training import Sparsifier

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    raise explain_missing_module(error.name, where="nm2trt.integrations.lightning") or error from None


class SparsifyCallback(Callback):
    """Keeps a LightningModule N:M around every optimizer step, and in every checkpoint.

        Trainer(..., callbacks=[SparsifyCallback("2:4")]).fit(module, ckpt_path=...)

    Its state is part of Lightning's checkpoints, so `ckpt_path=` goes on as if training had not stopped. SAD is
    recorded at each epoch's end: logged as `sad_previous`, `sad_start` and `flips_per_weight`, and kept layer by layer
    for `write_sad`.

    Args:
        pattern: N of M weights are kept along the reduction axis.
        method: One of `nm2trt.training.METHODS`.
        freeze_from: Share of all steps after which the masks are held; None never.
        module: Dotted name of the part of the LightningModule to make sparse; "" takes all of it.
        optimizer_index: Which of the optimizers that `configure_optimizers` returns steps that part.
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
        module: str = "",
        optimizer_index: int | None = None,
        **options: Any,
    ) -> None:
        self._sparsity = TrainerSparsity(pattern, method, freeze_from, options)
        self._module, self._optimizer_index = module, optimizer_index
        self._restored: Any = None

    @property
    def sparsifier(self) -> Sparsifier:
        """What `sparsify` returned; it stays on the model after training, so that another `fit` goes on from W."""
        return self._sparsity.sparsifier

    @property
    def state_key(self) -> str:
        """Under which Lightning saves the state; subclasses resume from each other, and each module has its own."""
        return f"nm2trt.SparsifyCallback{{module={self._module!r}}}"

    def write_sad(self, path: Path | str) -> None:
        """Write all SAD records so far, in the columns of `nm2trt train`'s sad.csv."""
        self._sparsity.write_sad(path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the module sparse, and take up the state of the checkpoint that Lightning has loaded."""
        self._sparsity.begin(
            self._part(pl_module), self._optimizer(trainer), total_steps=int(trainer.estimated_stepping_batches)
        )
        if self._restored is not None:
            self._sparsity.restore(self._restored, where=trainer.ckpt_path or "")
            self._restored = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Hold the masks in the last part."""
        del trainer, pl_module
        self._sparsity.after_step(self.sparsifier.steps)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record SAD."""
        pl_module.log_dict(self._sparsity.record(trainer.current_epoch + 1))

    def state_dict(self) -> dict[str, Any]:
        """What Lightning saves with a checkpoint."""
        return self._sparsity.state() if self._sparsity.has_begun else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until the optimizers are there."""
        self._restored = state_dict

    def _part(self, pl_module: LightningModule) -> Any:
        try:
            return pl_module.get_submodule(self._module)
        except AttributeError:
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise ConfigError(
                f"{type(pl_module).__name__} has no module {self._module!r}",
                where="SparsifyCallback",
                hint=f"give module= one of {names}",
            ) from None

    def _optimizer(self, trainer: Trainer) -> Any:
        optimizers, index = trainer.optimizers, self._optimizer_index
        if index is None and len(optimizers) == 1:
            return optimizers[0]
        if index is None or not 0 <= index < len(optimizers):
            raise ConfigError(
                f"configure_optimizers returned {len(optimizers)} optimizers, optimizer_index is {index}",
                where="SparsifyCallback",
                hint="say with optimizer_index= which one steps the weights, and with module= what it steps",
            )
        return optimizers[index]
