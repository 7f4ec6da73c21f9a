"""SR-STE in a training loop of your own: one line makes the network 2:4, nothing else changes.

    python examples/own_loop.py

Trains a small convolutional network on the digits inside scikit-learn and prints its accuracy, how much the masks
moved, and that the weights it ends with are 2:4 as they are.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from nm2trt.training import sparsify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)

    digits = load_digits()
    x = torch.tensor(digits.images / 16.0, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x))
    train, test = order[:1400], order[1400:]

    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    sparsifier = sparsify(model, optimizer, pattern="2:4", method="sr-ste")  # the one line

    for entry in sparsifier.report():
        print(f"{entry.name:10} {list(entry.shape)!s:18} {entry.pattern or 'dense'}: {entry.reason}")
    for epoch in range(epochs):
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (model(x[test]).argmax(1) == y[test]).float().mean()
        sad = sparsifier.record_sad().total
        print(f"epoch {epoch + 1:2}: accuracy {accuracy:.4f}, {sad.previous} mask bits moved")

    most = max(int((layer.weight != 0).unflatten(1, (-1, 4)).sum(2).max()) for layer in (model[2], model[5]))
    print(f"most non-zeros in four neighbors along the reduction axis: {most}")


if __name__ == "__main__":
    main()
