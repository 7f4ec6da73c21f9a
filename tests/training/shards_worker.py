"""Run by test_shards.py under torchrun on four gloo processes: meshes, placements and checkpoints of shards."""

import itertools
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from distributed_worker import end_process
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from nm2trt.errors import ConfigError
from nm2trt.training import sparsify

STEPS, BATCH = 3, 8
RESULTS = {}
# Switches after its first step, since eps is above any change of v.
STEP = {"method": "step", "total_steps": 5}


def net(widths=(16, 32, 16, 4)):
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())][:-1]).double()


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        yield (
            torch.randn(BATCH, 16, dtype=torch.float64, generator=generator),
            torch.randint(0, 4, (BATCH,), generator=generator),
        )


def train(model, *, parts=1, part=0, sparse=None, **options):
    if options.get("method") == "step":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, eps=1e-3)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    sparsifier = sparsify(sparse or model, optimizer, "2:4", decay=0.1, **options)
    for x, y in batches():
        optimizer.zero_grad()
        output = model(x.chunk(parts)[part])
        if isinstance(output, DTensor):
            output = output.full_tensor()
        F.cross_entropy(output, y.chunk(parts)[part]).backward()
        optimizer.step()
    return sparsifier


def whole(tree):
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    return tree.full_tensor().clone() if isinstance(tree, DTensor) else tree.clone()


def record(name, model, sparsifier):
    sad = sparsifier.record_sad()
    RESULTS[name] = {
        "weights": whole(dict(model.state_dict())),
        "dense": whole(sparsifier.dense_weights()),
        "residuals": whole(sparsifier.residuals()),
        "masks": whole(sparsifier.masks()),
        "sad": [(layer.layer, layer.weights, layer.start, layer.flips) for layer in [*sad.layers, sad.total]],
        "flips": {
            layer: int(whole(entry["flips"]).sum()) for layer, entry in sparsifier.state_dict()["layers"].items()
        },
    }


def one_process():
    model = net()
    record("one", model, train(model))
    held = net()
    record("step one", held, train(held, **STEP))
    thin = net((16, 1, 16, 2, 16, 4))
    record("thin one", thin, train(thin, layer_patterns={"0": "2:4"}))


def fsdp(rank, folder):
    model = net()
    fully_shard(model)
    sparsifier = train(model, parts=4, part=rank)
    record("fsdp", model, sparsifier)
    before = {key: whole(value) for key, value in sparsifier.residuals().items()}
    dcp.save({"sparsifier": sparsifier.state_dict(), "model": get_model_state_dict(model)}, checkpoint_id=folder)
    # Another network, in another mesh, with every process holding another part.
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    other = net()
    nn.init.zeros_(other[0].weight)
    fully_shard(other, mesh=mesh)
    again = sparsify(other, torch.optim.SGD(other.parameters(), lr=0.1), "2:4")
    state = {"sparsifier": again.state_dict(), "model": get_model_state_dict(other)}
    dcp.load(state, checkpoint_id=folder)
    from torch.distributed.checkpoint.state_dict import set_model_state_dict

    set_model_state_dict(other, state["model"])
    again.load_state_dict(state["sparsifier"])
    RESULTS["resharded"] = {
        "same": all(torch.equal(whole(again.residuals()[key]), value) for key, value in before.items()),
        "flips": {layer: int(whole(entry["flips"]).sum()) for layer, entry in again.state_dict()["layers"].items()},
        "dense": whole(again.dense_state_dict(other)),
    }
    # The whole state, as full_state_dict gives it, goes back into shards, and a part is what the placements say.
    full = whole_state(sparsifier.state_dict())
    again.load_state_dict(full)
    RESULTS["from whole"] = all(torch.equal(whole(again.residuals()[key]), value) for key, value in before.items())


def whole_state(state):
    layers = {
        name: {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in entry.items()}
        for name, entry in state["layers"].items()
    }
    return {**state, "layers": layers}


def hsdp(rank):
    model = net()
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    record("hsdp", model, train(model, parts=4, part=rank))
    model = net()
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    record("step hsdp", model, train(model, parts=4, part=rank, **STEP))


def thin(rank):
    """Weights of 1 and 2 rows on four processes, and of 16 rows for the rest."""
    model = net((16, 1, 16, 2, 16, 4))
    fully_shard(model)
    record("thin", model, train(model, parts=4, part=rank, layer_patterns={"0": "2:4"}))


def uneven(rank):
    """33 rows on four processes: 9, 9, 9, 6."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 33), nn.Tanh(), nn.Linear(33, 4)).double()
    alone = nn.Sequential(nn.Linear(16, 33), nn.Tanh(), nn.Linear(33, 4)).double()
    alone.load_state_dict(model.state_dict())
    record("uneven one", alone, train(alone))
    fully_shard(model)
    record("uneven", model, train(model, parts=4, part=rank))


def tensor_parallel():
    """Column-wise, then row-wise: 32 inputs on four processes are two groups of 4 each."""
    model = net()
    mesh = init_device_mesh("cpu", (4,))
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    record("tensor parallel", model, train(model))


def both(rank):
    """FSDP2 over tensor parallelism: torch's strided shards, which say of themselves that they are none."""
    model = net()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    kinds = [type(placement).__name__ for placement in model[0].weight.placements]
    record("both", model, train(model, parts=2, part=rank // 2))
    RESULTS["both"]["placements"] = kinds


def copies():
    """DTensor's own data parallelism, whose gradients are sums that nobody has carried out."""
    model = net()
    mesh = init_device_mesh("cpu", (4,))
    distribute_module(model, mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    sparsifier = sparsify(model, optimizer, "2:4", decay=0.1)
    for x, y in batches():
        optimizer.zero_grad()
        x_BX = distribute_tensor(x, mesh, [Shard(0)])
        output = model(x_BX).redistribute(mesh, [Replicate()]).to_local()
        F.cross_entropy(output, y).backward()
        optimizer.step()
    record("copies", model, sparsifier)


def refused():
    """24 inputs on four processes are 6 each, which cuts groups of 4: every process must say so."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16), nn.Linear(16, 4))
    parallelize_module(model, init_device_mesh("cpu", (4,)), {"0": ColwiseParallel(), "2": RowwiseParallel()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        sparsify(model, optimizer, "2:4")
        RESULTS["refused"] = "taken"
    except ConfigError as error:
        RESULTS["refused"] = str(error)
    RESULTS["excluded"] = list(sparsify(model, optimizer, "2:4", exclude=["2"]).masks())


def fsdp1():
    from torch.distributed.fsdp import FullyShardedDataParallel

    for original in (True, False):
        model = FullyShardedDataParallel(net(), use_orig_params=original, device_id=torch.device("cpu"))
        for given in (model, model.module, nn.Sequential(model)):
            try:
                sparsify(given, torch.optim.SGD(model.parameters(), lr=0.1), "2:4")
                RESULTS.setdefault("fsdp1", []).append("taken")
            except ConfigError as error:
                RESULTS.setdefault("fsdp1", []).append(str(error))


def main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    one_process()
    fsdp(rank, str(folder / "dcp"))
    hsdp(rank)
    thin(rank)
    uneven(rank)
    tensor_parallel()
    both(rank)
    copies()
    refused()
    fsdp1()
    torch.save(RESULTS, folder / f"{rank}.pt")
    end_process()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
