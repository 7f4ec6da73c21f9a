"""Losses of an epoch, kept on the device: the host reads them when they are there, and waits for none."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class StepLoss:
    """What is recorded of one optimizer step."""

    step: int
    epoch: int
    loss: float
    rate: float
    all_finite: bool
    """Whether every loss up to here was a number."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    step: int
    epoch: int
    rate: float
    values: torch.Tensor
    """On the host, [loss, sum of the epoch so far]; filled once `copied` is done."""
    copied: Any
    """A CUDA event; None where the values are there at once."""


class EpochLosses:
    """Sum of the losses so far, and the records of steps on their way to the host.

    On a GPU, reading a loss right after its step would make the host wait for the whole step, and the GPU then waits
    for the host's next launches. So values are copied without waiting and read some steps later.

    Args:
        device: Where the losses are.
        loss_sum: Of the samples that a resumed epoch has behind it.
    """

    def __init__(self, device: torch.device, loss_sum: float = 0.0) -> None:
        self._on_gpu = device.type == "cuda"
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sum = torch.tensor(loss_sum, dtype=dtype, device=device)
        self._waiting: deque[_Waiting] = deque()

    def add(self, loss: torch.Tensor, samples: int) -> None:
        """Take the mean loss of a micro-batch."""
        self._sum += loss.detach().to(self._sum.dtype) * samples

    def record(self, loss: torch.Tensor, *, step: int, epoch: int, rate: float) -> None:
        """Have a step's loss read when it is there."""
        values = torch.stack([loss.detach().to(self._sum.dtype), self._sum])
        copied = None
        if self._on_gpu:
            host = torch.empty(2, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
            values = host
        self._waiting.append(_Waiting(step, epoch, rate, values, copied))

    def ready(self, *, wait: bool = False) -> Iterator[StepLoss]:
        """Yield the records that have come, in order.

        Args:
            wait: Wait for the rest, too; at the end of an epoch.
        """
        while self._waiting:
            first = self._waiting[0]
            if first.copied is not None and not first.copied.query():
                if not wait:
                    return
                first.copied.synchronize()
            self._waiting.popleft()
            loss, loss_sum = first.values.tolist()
            finite = bool(torch.isfinite(torch.tensor([loss, loss_sum])).all())
            yield StepLoss(first.step, first.epoch, loss, first.rate, finite)

    def total(self) -> float:
        """Sum over the samples so far; waits for the device."""
        return float(self._sum)
