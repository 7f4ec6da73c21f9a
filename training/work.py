"""How much work a network is, for the choice of threads."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_FLOP_PER_GFLOP = 1e9


def forward_gflop(model: nn.Module, input_shape: tuple[int, ...]) -> float:
    """Count the floating-point operations of one sample's forward pass (products and attention), in units of 1e9.

    Args:
        model: The network on the CPU, which has run on such a sample before; it is left as it was.
        input_shape: One sample.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *input_shape))
    finally:
        model.train(training)
    return float(counter.get_total_flops()) / _FLOP_PER_GFLOP
