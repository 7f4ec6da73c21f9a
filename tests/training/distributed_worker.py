"""Run by test_distributed.py under torchrun: a few steps of SR-STE, every rank on its part of each batch."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from nm2trt.training import sparsify

STEPS, BATCH = 6, 8


def main(kind, folder):
    dist.init_process_group("gloo")
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
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}
    if kind == "zero":
        from torch.distributed.optim import ZeroRedundancyOptimizer

        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, **settings)
    else:
        optimizer = torch.optim.SGD(model.parameters(), **settings)
    sparsifier = sparsify(model, optimizer, "2:4", decay=0.1)
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
    weights = {}
    for name, value in net.state_dict().items():
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        weights[name] = whole.clone()
    torch.save(
        {"losses": torch.stack(losses), "weights": weights, "sad": counts},
        Path(folder) / f"{kind}-{rank}-of-{world}.pt",
    )
    end_process()


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
