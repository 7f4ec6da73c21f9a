"""Score and loss of a network over the test samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from nm2trt.data.tasks import Task
from nm2trt.errors import InputError
from nm2trt.training.blame import NetworkCalls, losses_of, points_of


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model: nn.Module, test: DataLoader[Any], task: Task, calls: NetworkCalls
) -> tuple[float, float]:
    """Score (a share) and mean loss over all samples, gathered from every process.

    Raises:
        InputError: The network or the task raised, or the score is no number.
    """
    model.eval()
    sums = torch.zeros(3, dtype=_sum_dtype(accelerator.device), device=accelerator.device)
    samples = 0
    for x_BX, y_B in test:
        output = calls.forward(model, x_BX)
        found = points_of(task, output, y_B), losses_of(task, output, y_B)
        points_B2, losses_B = accelerator.gather_for_metrics(found)
        sums[:2] += points_B2.sum(dim=0).to(sums.dtype)
        sums[2] += losses_B.sum().to(sums.dtype)
        samples += len(losses_B)
    points, possible, loss = sums.tolist()
    if not possible or not math.isfinite(points / possible):
        raise InputError(f"the score is {points} of {possible}", where=f"task {type(task).__name__}")
    return points / possible, loss / samples


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
