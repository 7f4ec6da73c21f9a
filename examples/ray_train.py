"""SR-STE under Ray Train: as many workers as you like with DDP, 2:4 in every checkpoint, and resumable.

    pip install 'nm2trt[ray]'
    python examples/ray_train.py -o runs/ray [--workers 2] [--epochs 6]

Called again with the same OUTPUT and more epochs it goes on from the last checkpoint; where a worker dies, Ray starts
all of them again from there. Trains a small convolutional network on the digits inside scikit-learn. The checkpoint is
2:4 as it is: `nm2trt verify runs/ray/digits/checkpoint_*/model.safetensors`. Ray reports usage statistics to its makers
unless RAY_USAGE_STATS_ENABLED=0 is set.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.nn.functional as F
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

from nm2trt import Sparsifier, sparsify

BATCH_SIZE = 128
"""Of all workers together."""


def build_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def save(
    folder: Path, epoch: int, network: nn.Module, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier
) -> None:
    """Write the network, 2:4 as it is, and beside it what a resumed training needs."""
    patterns = {name: str(pattern) for name, pattern in sparsifier.patterns().items()}
    metadata = {"nm2trt.patterns": json.dumps(patterns), "nm2trt.method": sparsifier.method}
    save_file(network.state_dict(), folder / "model.safetensors", metadata=metadata)
    state = {"epoch": epoch, "optimizer": optimizer.state_dict(), "sparsifier": sparsifier.state_dict()}
    torch.save(state, folder / "state.pt")


def load(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier) -> int:
    """Restore what `save` wrote, the network before the sparsifier; returns the epoch."""
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    optimizer.load_state_dict(state["optimizer"])
    sparsifier.load_state_dict(state["sparsifier"])
    return int(state["epoch"])


def train_worker(config: dict[str, Any]) -> None:
    """What every worker runs: its part of each batch, and a report to Ray after each epoch."""
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images / 16.0, dtype=torch.float32).unsqueeze(1).to(device)
    y = torch.tensor(digits.target).to(device)
    order = torch.randperm(len(x))
    train, test = order[:1400], order[1400:]

    network = build_network().to(device)
    model = ray.train.torch.prepare_model(network)  # DDP where there are several workers
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    sparsifier = sparsify(model, optimizer, "2:4", "sr-ste")  # the same masks on every worker

    done = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            done = load(Path(folder), network, optimizer, sparsifier)
    for epoch in range(done + 1, config["epochs"] + 1):
        shuffled = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch))]
        batches = [batch for batch in shuffled.split(BATCH_SIZE) if len(batch) == BATCH_SIZE]
        for batch in batches:
            mine = batch.chunk(workers)[rank]
            optimizer.zero_grad()
            F.cross_entropy(model(x[mine]), y[mine]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (network(x[test]).argmax(1) == y[test]).float().mean()
        sad = sparsifier.record_sad().total
        metrics = {"epoch": epoch, "resumed_from": done, "workers": workers, "accuracy": float(accuracy)}
        metrics["flips_per_weight"] = sad.flips_per_weight
        with tempfile.TemporaryDirectory() as folder:
            if rank == 0:
                save(Path(folder), epoch, network, optimizer, sparsifier)
            # A barrier: every worker reports, and the first one has the checkpoint.
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder) if rank == 0 else None)


def run(output: Path, epochs: int, workers: int, worker: Any = train_worker) -> ray.train.Result:
    """Train in `output`, from its last checkpoint where it has one."""
    trainer = ray.train.torch.TorchTrainer(
        worker,
        train_loop_config={"epochs": epochs},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=torch.cuda.is_available()),
        run_config=RunConfig(
            name="digits",
            storage_path=str(output.resolve()),
            failure_config=FailureConfig(max_failures=1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    return trainer.fit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="On a cluster: storage that all nodes share.")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    # On a cluster Ray is running already; else one is started here, and ended below. Its logs lie in /tmp/ray.
    own = {"num_cpus": arguments.workers, "include_dashboard": False, "log_to_driver": False}
    ray.init(**({} if "RAY_ADDRESS" in os.environ else own))
    try:
        result = run(arguments.output, arguments.epochs, arguments.workers)
        found = result.metrics
        print(f"{found['workers']} workers, epochs {found['resumed_from'] + 1} to {found['epoch']}")
        print(f"{found['flips_per_weight']:.2f} flips a weight")
        print(f"test accuracy {found['accuracy']:.4f}")
        print(f"checkpoint {result.checkpoint.path}")
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
