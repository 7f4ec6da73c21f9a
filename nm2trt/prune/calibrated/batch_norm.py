"""Batch norm statistics of a network whose weights were changed, measured again on samples."""

from __future__ import annotations

import torch
from torch import nn

from nm2trt.errors import InputError
from nm2trt.prune.calibrated.torch_uses import Batches, as_in_inference, run_batches


def recalibrate_batch_norm(model: nn.Module, batches: Batches) -> int:
    """Replace running means and variances by their averages over all batches; nothing else changes.

    Layers are measured together in one pass, so a deeper one sees what the ones before it normalize by the batch's own
    statistics, as in training. Batches should be of the size of training; 32 and more samples are well enough.

    Args:
        model: Changed in place, and left as it was where an error is raised.
        batches: See `Batches`.

    Returns:
        Layers measured again; 0 where none keeps statistics.

    Raises:
        InputError: There is no batch, the network cannot run on one, or statistics are NaN or infinite.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None  # noqa: SLF001
    }
    if not norms:
        return 0
    saved = {
        name: ({k: v.clone() for k, v in norm.state_dict().items()}, norm.momentum) for name, norm in norms.items()
    }
    done = False
    try:
        with as_in_inference(model):
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            for _ in run_batches(model, batches, "batch norm"):
                pass
        for name, norm in norms.items():
            assert norm.running_mean is not None
            assert norm.running_var is not None
            if not (torch.isfinite(norm.running_mean).all() and torch.isfinite(norm.running_var).all()):
                raise InputError("its new statistics hold NaN or infinity", where=name, hint="check the samples")
        done = True
    finally:
        for name, norm in norms.items():
            norm.momentum = saved[name][1]
            if not done:
                norm.load_state_dict(saved[name][0])
    return len(norms)
