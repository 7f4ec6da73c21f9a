"""Errors of what the user brings (network, task, samples), told as such: they are no internal errors of nm2trt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nm2trt.errors import ConfigError, InputError, MachineError, Nm2trtError
from nm2trt.library_errors import one_line
from nm2trt.models import model_names
from nm2trt.user_code import describe

_WORKER_DIED = "DataLoader worker"


class NetworkCalls:
    """Calls a network of the user's or a library's, so that what it raises names it.

    Args:
        name: As `--model` has it. What nm2trt's own networks raise passes: it is an internal error.
    """

    def __init__(self, name: str) -> None:
        self._where = f"model {name}"
        self._own = name in model_names()

    def forward(self, model: Any, x_BX: torch.Tensor) -> torch.Tensor:
        """Run the network on a batch.

        Raises:
            InputError: It raised; the line says what and where.
            ConfigError: It returned something else than a tensor.
            MachineError: The memory is full.
        """
        with self._blamed("its forward pass"):
            output = model(x_BX)
        if not isinstance(output, torch.Tensor):
            mode = "training" if getattr(model, "training", False) else "evaluation"
            raise ConfigError(
                f"returns {type(output).__name__} in {mode} and no tensor of logits",
                where=self._where,
                hint="return the logits alone",
            )
        return output

    @contextmanager
    def _blamed(self, part: str) -> Iterator[None]:
        with memory_is_enough():
            try:
                yield
            except (Nm2trtError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                if self._own:
                    raise
                raise InputError(f"{part} raised {describe(error)}", where=self._where) from error

    def backward(self, accelerator: Any, loss: torch.Tensor) -> None:
        """Run the backward pass.

        Raises:
            InputError: It raised, or the loss does not depend on any parameter.
            MachineError: The memory is full.
        """
        if not loss.requires_grad:
            raise InputError(
                "the loss depends on no parameter that is trained",
                where=self._where,
                hint="look for no_grad, detach or requires_grad = False in the network or the task",
            )
        with self._blamed("its backward pass"):
            accelerator.backward(loss)


@contextmanager
def memory_is_enough() -> Iterator[None]:
    """Tell a full GPU in one line."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MachineError(
            f"the GPU's memory is full: {str(error).partition('.')[0]}", hint="lower --batch-size, or give --fsdp"
        ) from error


@contextmanager
def task_call(task: Any, part: str) -> Iterator[None]:
    """Name a task of the user's own in what its functions raise."""
    with memory_is_enough():
        try:
            yield
        except (Nm2trtError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise InputError(f"{part} raised {describe(error)}", where=f"task {type(task).__name__}") from error


def losses_of(task: Any, output: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """Each sample's loss, [B].

    Raises:
        InputError: The task's function raised, or returned something else.
    """
    with task_call(task, "losses"):
        losses_B: torch.Tensor = task.losses(output, y_B)
    _check(task, "losses", losses_B, (len(y_B),))
    return losses_B


def points_of(task: Any, output: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """Each sample's points and how many there could be, [B, 2].

    Raises:
        InputError: The task's function raised, or returned something else.
    """
    with task_call(task, "score"):
        points_B2: torch.Tensor = task.score(output, y_B)
    _check(task, "score", points_B2, (len(y_B), 2))
    return points_B2


def _check(task: Any, part: str, found: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != shape:
        what = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise InputError(f"{part} returned {what} and not {list(shape)}", where=f"task {type(task).__name__}")


@contextmanager
def workers_live() -> Iterator[None]:
    """Tell in one line that a process which reads samples was killed."""
    try:
        yield
    except RuntimeError as error:
        if _WORKER_DIED not in str(error):
            raise
        raise MachineError(
            f"a process that reads samples died: {one_line(error)}",
            hint="the memory may be full: give fewer --workers, or --workers 0 to see the error itself",
        ) from error
