"""What the callbacks of all trainers share: when to sparsify and hold masks, SAD, and what a checkpoint needs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nm2trt.artifacts import write_atomic
from nm2trt.errors import ConfigError, InputError
from nm2trt.pattern import NMPattern
from nm2trt.training import METHODS, Sparsifier, sparsify
from nm2trt.training.arguments import check_pattern
from nm2trt.training.sad import sad_csv
from nm2trt.training.sharding import whole

_OWN = frozenset({"model", "optimizer", "pattern", "method", "total_steps"})


class TrainerSparsity:
    """The sparsifier of one training, from its first step to its last, through any number of resumptions.

    Args:
        pattern: N of M weights are kept along the reduction axis.
        method: One of `nm2trt.training.METHODS`.
        freeze_from: Share of all optimizer steps after which the masks are held; None never holds them.
        options: Other keywords of `nm2trt.training.sparsify`.

    Raises:
        ConfigError: An argument is wrong; all that can be seen before there is a model.
    """

    def __init__(
        self, pattern: str | NMPattern, method: str, freeze_from: float | None, options: Mapping[str, Any]
    ) -> None:
        known = set(inspect.signature(sparsify).parameters) - _OWN
        mistakes = [f"{name} is no option of sparsify" for name in options if name not in known]
        if method not in METHODS:
            mistakes.append(f"method {method!r} is none of {', '.join(METHODS)}")
        if freeze_from is not None and not 0 <= freeze_from <= 1:
            mistakes.append(f"freeze_from = {freeze_from} is no share of the steps, from 0 to 1")
        if mistakes:
            raise ConfigError(
                "; ".join(mistakes),
                where="SparsifyCallback",
                hint=f"options of sparsify are {', '.join(sorted(known))}",
            )
        self._pattern = check_pattern(pattern, "pattern")
        self._method, self._freeze_from, self._options = method, freeze_from, dict(options)
        self._total_steps = 0
        self._sparsifier: Sparsifier | None = None
        self._rows: list[dict[str, object]] = []

    @property
    def sparsifier(self) -> Sparsifier:
        """What `sparsify` returned.

        Raises:
            ConfigError: Training has not begun.
        """
        if self._sparsifier is None:
            raise ConfigError("training has not begun, so nothing is sparse", hint="start the trainer first")
        return self._sparsifier

    @property
    def has_begun(self) -> bool:
        """Whether there is a sparsifier."""
        return self._sparsifier is not None

    def begin(self, model: nn.Module, optimizer: Any, *, total_steps: int) -> None:
        """Make the model sparse, before the first step of a training or of its resumption.

        Args:
            model: On its device, wrapped and sharded as it will train, with the weights that it starts from.
            optimizer: The trainer's, or a wrapper around it.
            total_steps: Optimizer steps of the whole training.

        Raises:
            ConfigError: See `nm2trt.training.sparsify`.
        """
        arguments: dict[str, Any] = {**self._options, "pattern": self._pattern, "method": self._method}
        self._rows, self._total_steps = [], total_steps
        self._sparsifier = sparsify(model, optimizer, total_steps=total_steps, **arguments)

    def after_step(self, step: int) -> None:
        """Hold the masks once their share of the steps is over.

        Args:
            step: Optimizer steps that are done.
        """
        if self._freeze_from is not None and step >= self._freeze_from * self._total_steps:
            self.sparsifier.freeze_masks()

    def record(self, epoch: float) -> dict[str, float]:
        """Record SAD of every layer; where weights are sharded, every process must call this.

        Returns:
            Of all layers together, per weight: mask bits that differ from the record before (`sad_previous`) and from
            the first masks (`sad_start`), and flips since the start (`flips_per_weight`).
        """
        sad = self.sparsifier.record_sad()
        self._rows.extend(sad.rows(epoch))
        total = sad.total
        return {
            "sad_previous": total.previous_normalized,
            "sad_start": total.start_normalized,
            "flips_per_weight": total.flips_per_weight,
        }

    def write_sad(self, path: Path | str) -> None:
        """Write all records as `nm2trt train` writes its sad.csv: a row per layer and record, and their total."""
        write_atomic(Path(path), sad_csv(self._rows))

    def state(self) -> dict[str, Any]:
        """What a resumption needs beside the model's and the optimizer's state; tensors are whole, none is copied.

        Where weights are sharded, they are gathered on every process's CPU, and every process must call this.
        """
        state: dict[str, Any] = whole(self.sparsifier.state_dict())
        return {"sparsifier": state, "sad": [dict(row) for row in self._rows]}

    def restore(self, state: Any, *, where: object = "") -> None:
        """Take a state up, after `begin` with the model's weights of the same moment.

        Args:
            state: From `state`.
            where: Where it was read, for the error line.

        Raises:
            InputError: It is no such state.
            ConfigError: It is of another method, other layers or another moment.
        """
        if not isinstance(state, Mapping) or not {"sparsifier", "sad"} <= state.keys():
            raise InputError("is no state that a SparsifyCallback saved", where=where, hint="resume from another one")
        self.sparsifier.load_state_dict(state["sparsifier"])
        self._rows = list(state["sad"])


def load_weights_only(path: Path) -> Any:
    """Read a file of `torch.save` onto the CPU; code in it never runs.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 -- a damaged pickle raises anything
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"is no readable state of a sparsifier: {reason}", where=path, hint="resume from another checkpoint"
        ) from None
