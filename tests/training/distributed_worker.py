"""Run by test_distributed.py under torchrun: a few steps of each method, every rank on its part of each batch."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from nm2trt.errors import ConfigError
from nm2trt.training import sparsify

STEPS, BATCH = 6, 8
TOTAL = 5
"""Fading ends after 3 steps and STEP switches after 3, so both sides of each are trained."""
OPTIONS = {
    "sr-ste": {"method": "sr-ste"},
    "sr-ste, warmed up": {"method": "sr-ste", "decay_warmup": 1.0},
    "s-ste": {"method": "s-ste"},
    "step": {"method": "step"},
    "linear": {"method": "decaying-mask"},
    "exponential": {"method": "decaying-mask", "mask_decay": "exponential"},
    "structured": {"method": "decaying-mask", "mask_decay": "structured"},
}


def main(kind, folder):
    dist.init_process_group("gloo")
    found = {name: train(kind, options) for name, options in OPTIONS.items()}
    torch.save(found, Path(folder) / f"{kind}-{dist.get_rank()}-of-{dist.get_world_size()}.pt")
    end_process()


def train(kind, options):
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)).double()
    model = net
    if kind in ("ddp", "zero"):
        model = nn.parallel.DistributedDataParallel(net)
    else:
        from torch.distributed.fsdp import fully_shard

        for layer in net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(net)
    rule, settings = torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}
    if options["method"] == "step":
        rule, settings = torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 1e-2, "eps": 1e-4}
    if kind == "zero":
        from torch.distributed.optim import ZeroRedundancyOptimizer

        optimizer = ZeroRedundancyOptimizer(model.parameters(), rule, **settings)
    else:
        optimizer = rule(model.parameters(), **settings)
    try:
        sparsifier = sparsify(model, optimizer, "2:4", decay=0.1, total_steps=TOTAL, **options)
    except ConfigError as error:
        return {"refused": str(error), "default": sparsify(model, optimizer, total_steps=TOTAL).method}
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(STEPS):
        x = torch.randn(BATCH, 16, dtype=torch.float64, generator=generator)
        y = torch.randint(0, 4, (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.chunk(world)[rank]), y.chunk(world)[rank])
        loss.backward()
        optimizer.step()
        mean = loss.detach() / world
        dist.all_reduce(mean)
        losses.append(mean)
    record = sparsifier.record_sad()
    counts = {layer.layer: (layer.weights, layer.start, layer.flips) for layer in [*record.layers, record.total]}
    return {
        "losses": torch.stack(losses),
        "weights": whole(net.state_dict()),
        "dense": whole(sparsifier.dense_weights()),
        "masks": whole(sparsifier.masks()),
        "sad": counts,
    }


def whole(tensors):
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()
        for name, value in tensors.items()
    }


def end_process():
    """End with exit code 0 once every rank's work is done and written, past torch's and gloo's teardown.

    A rank of this script once ended with SIGABRT ("terminate called without an active exception") on a CI machine, with
    its work done as far as could be told; what is tested lies before.
    """
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(*sys.argv[1:])
