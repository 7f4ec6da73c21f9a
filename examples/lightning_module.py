"""SR-STE in a Lightning Trainer: one callback makes the network 2:4, resuming included.

    pip install 'nm2trt[lightning]'
    python examples/lightning_module.py -o runs/lightning [--epochs 6] [--resume]

Trains a small convolutional network on the digits inside scikit-learn, in bf16 autocast. Lightning's checkpoint is 2:4
as it is: `nm2trt verify runs/lightning/last.ckpt`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nm2trt.integrations.lightning import SparsifyCallback


class Digits(LightningModule):
    """A network of digits; nothing in it knows about sparsity."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
        """Return the loss of one batch."""
        x_BCHW, y_B = batch
        return F.cross_entropy(self.network(x_BCHW), y_B)

    def validation_step(self, batch: list[torch.Tensor], _index: int) -> None:
        """Log the accuracy on one batch."""
        x_BCHW, y_B = batch
        self.log("accuracy", (self.network(x_BCHW).argmax(1) == y_B).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Give the optimizer that the callback watches."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--resume", action="store_true", help="Go on from OUTPUT/last.ckpt.")
    arguments = parser.parse_args()

    seed_everything(0, verbose=False)
    digits = load_digits()
    x_BCHW = torch.tensor(digits.images / 16.0, dtype=torch.float32).unsqueeze(1)
    y_B = torch.tensor(digits.target)
    order = torch.randperm(len(y_B))
    train, test = (TensorDataset(x_BCHW[part], y_B[part]) for part in (order[:1400], order[1400:]))

    callback = SparsifyCallback("2:4", "sr-ste")
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=arguments.epochs,
        precision="bf16-mixed",
        callbacks=[callback, ModelCheckpoint(arguments.output, save_last=True)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        Digits(),
        DataLoader(train, batch_size=64, shuffle=True),
        DataLoader(test, batch_size=512),
        ckpt_path=arguments.output / "last.ckpt" if arguments.resume else None,
    )
    callback.write_sad(arguments.output / "sad.csv")
    print(f"{len(callback.sparsifier.patterns())} weights are 2:4 after {callback.sparsifier.steps} steps")
    print(f"{float(trainer.callback_metrics['flips_per_weight']):.2f} flips a weight")
    print(f"test accuracy {float(trainer.callback_metrics['accuracy']):.4f}")


if __name__ == "__main__":
    main()
